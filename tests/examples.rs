//! The examples, run as their readers would.

#[path = "../examples/custom_network.rs"]
mod custom_network;
#[path = "../examples/merge_two.rs"]
mod merge_two;

#[test]
fn a_network_of_ones_own() {
    custom_network::main().unwrap();
}

#[test]
fn two_networks_to_one() {
    merge_two::main().unwrap();
}
