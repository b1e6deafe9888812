//! Embeds the sources of the GPU kernels, so that the program can compile them where it runs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("the folder kernels/ belongs to the crate")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    sources.sort();
    let mut table = String::from("&[\n");
    for path in sources {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let path = path.canonicalize().expect("a file that was just listed");
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("writing to a string");
    }
    table.push_str("]\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("kernels.rs"), table).expect("OUT_DIR can be written to");
}
