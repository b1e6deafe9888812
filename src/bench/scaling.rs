//! How the convolutions of a step fill more threads than there are here: by the lists of their tasks, and nothing is run.

use serde::Serialize;

use super::step::StepCase;
use crate::ops::conv2d::tasks;
use crate::report::Table;

/// A step's convolutions on so many threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    pub name: String,
    pub threads: usize,
    /// Multiplications of all tasks, and of the longest path: in each product those of the thread that has most.
    pub sum: u64,
    pub longest_path: u64,
    /// Tasks of the product that has fewest.
    pub fewest_tasks: usize,
}

impl Scaling {
    fn speedup(&self) -> f64 {
        self.sum as f64 / self.longest_path as f64
    }
}

pub(super) fn of(case: &StepCase, threads: usize) -> Scaling {
    let products = case.passes().flat_map(|(g, pass)| tasks(&g, pass, threads));
    let products: Vec<Vec<usize>> = products.filter(|tasks| !tasks.is_empty()).collect();
    let total = |tasks: &Vec<usize>| tasks.iter().map(|&task| task as u64).sum::<u64>();
    Scaling {
        name: case.name(),
        threads,
        sum: products.iter().map(total).sum(),
        longest_path: products.iter().map(|tasks| makespan(tasks, threads)).sum(),
        fewest_tasks: products.iter().map(Vec::len).min().unwrap_or(0),
    }
}

/// What the thread does that does most, if each takes the next task when it is free.
fn makespan(tasks: &[usize], threads: usize) -> u64 {
    let mut busy = vec![0u64; threads];
    for &task in tasks {
        let free = busy.iter_mut().min().expect("a thread");
        *free += task as u64;
    }
    busy.into_iter().max().expect("a thread")
}

/// A line for each step and number of threads.
pub fn table(all: &[Scaling]) -> Table {
    let mut table = Table::new(["step", "threads", "sum ÷ longest path", "of the threads", "fewest tasks"]);
    for scaling in all {
        let share = scaling.speedup() / scaling.threads as f64;
        table.row([
            scaling.name.clone(),
            scaling.threads.to_string(),
            format!("{:.2}", scaling.speedup()),
            format!("{:.0} %", 100.0 * share),
            scaling.fewest_tasks.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_is_that_of_the_busiest_thread() {
        assert_eq!(makespan(&[4, 3, 2, 1], 1), 10);
        assert_eq!(makespan(&[4, 3, 2, 1], 2), 5);
        assert_eq!(makespan(&[1, 1, 4], 2), 5);
        assert_eq!(makespan(&[7], 64), 7);
    }
}
