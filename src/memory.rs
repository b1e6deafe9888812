//! How much memory there is to take: the least that any of the system's limits leaves.
//!
//! ```text
//! MemAvailable (/proc/meminfo)                                   what the machine has without swapping
//! max − current + inactive_file, of the process's control group  what its container allows, and every group around it
//!     and of each one around it                                  (version 2, and version 1's memory controller)
//! max address space − VmSize (/proc/self)                        what `ulimit -v` allows
//! ```
//!
//! Pages of files that nobody used lately (`inactive_file`) count towards a group's use and go when memory is needed, so
//! they are free. A source that is missing, or says something else than it should, sets no limit.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where the system tells nothing, the memory of a workstation.
const ASSUMED: u64 = 32 << 30;

/// Bytes that can be taken now.
pub fn available() -> u64 {
    available_under(Path::new("/"))
}

/// [`available`] as the files below `root` have it.
fn available_under(root: &Path) -> u64 {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let groups = read("proc/self/cgroup");
    let sources = [
        kib_of(&read("proc/meminfo"), "MemAvailable:"),
        VERSION_2.available(root, &groups),
        VERSION_1.available(root, &groups),
        address_space(&read("proc/self/limits"), &read("proc/self/status")),
    ];
    sources.into_iter().flatten().min().unwrap_or(ASSUMED)
}

/// The bytes that a line such as `MemAvailable:  123 kB` tells.
fn kib_of(report: &str, name: &str) -> Option<u64> {
    let amount = report.lines().find_map(|line| line.strip_prefix(name))?;
    amount.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// Bytes that the limit on addresses leaves; None where there is no limit.
fn address_space(limits: &str, status: &str) -> Option<u64> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib_of(status, "VmSize:")?))
}

/// The names of one version's files.
struct ControlGroups {
    /// Where its tree may be mounted.
    mounts: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` with the inactive pages of files of a group and all below it.
    inactive: &'static str,
    /// The process's group, by the lines of `/proc/self/cgroup`.
    group: fn(&str) -> Option<&str>,
}

const VERSION_2: ControlGroups = ControlGroups {
    // The second beside version 1.
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    inactive: "inactive_file ",
    group: |groups| groups.lines().find_map(|line| line.strip_prefix("0::")),
};

const VERSION_1: ControlGroups = ControlGroups {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file ",
    group: memory_controller,
};

/// The group of a line `4:cpu,memory:/group`.
fn memory_controller(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "memory").then_some(group)
    })
}

impl ControlGroups {
    /// The least that the process's group and those around it leave. Inside a container the path may be the one outside;
    /// then the groups that are not there are passed over, and the tree's root is the container's own.
    fn available(&self, root: &Path, groups: &str) -> Option<u64> {
        let group = (self.group)(groups)?;
        // `..` leads to groups that cannot be seen from here.
        let below = |part: &Component| matches!(part, Component::Normal(_));
        let group: PathBuf = Path::new(group).components().filter(below).collect();
        let around = |mount: &&str| group.ancestors().map(|group| root.join(mount).join(group)).collect::<Vec<_>>();
        self.mounts.iter().flat_map(around).filter_map(|folder| self.available_in(&folder)).min()
    }

    fn available_in(&self, folder: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        self.left(&read(self.limit)?, &read(self.usage)?, &read("memory.stat").unwrap_or_default())
    }

    /// Bytes that a group leaves; None where it has no limit.
    fn left(&self, limit: &str, usage: &str, statistics: &str) -> Option<u64> {
        // Version 2 writes `max` where there is none; version 1 a number that no machine reaches.
        let limit: u64 = limit.trim().parse().ok()?;
        let usage: u64 = usage.trim().parse().ok()?;
        let inactive = statistics.lines().find_map(|line| line.strip_prefix(self.inactive)?.trim().parse().ok());
        Some(limit.saturating_sub(usage.saturating_sub(inactive.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that imitates a system's files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n");

    #[test]
    fn without_limits_it_is_what_the_machine_has_without_swapping() {
        assert_eq!(available_under(system(&[MEMINFO]).path()), 8000 << 10);
        assert_eq!(available_under(system(&[]).path()), ASSUMED);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "123\n"),
            ("proc/self/limits", "Max address space         unlimited            unlimited            bytes     \n"),
            ("proc/self/status", "Name:\tmedmerge\nVmSize:\t   10 kB\n"),
        ];
        assert_eq!(available_under(system(&unlimited).path()), 8000 << 10);
    }

    #[test]
    fn this_machine_tells_something() {
        assert!((1 << 20..1 << 50).contains(&available()));
    }

    #[test]
    fn a_report_that_says_something_else_sets_no_limit() {
        assert_eq!(kib_of("MemAvailable:   12 kB", "MemAvailable:"), Some(12 << 10));
        for report in ["", "MemAvailable:", "MemAvailable: 12", "MemAvailable: -1 kB", "MemAvailable: many kB"] {
            assert_eq!(kib_of(report, "MemAvailable:"), None, "{report}");
        }
        assert_eq!(VERSION_2.left("", "1", ""), None);
        assert_eq!(VERSION_2.left("9", "", ""), None);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_it_uses_and_cannot_give_back() {
        assert_eq!(VERSION_2.left("1000\n", "700\n", ""), Some(300));
        let statistics = "anon 300\nfile 400\ninactive_anon 7\ninactive_file 250\nactive_file 150\n";
        assert_eq!(VERSION_2.left("1000\n", "700\n", statistics), Some(550));
        assert_eq!(VERSION_2.left("1000\n", "1200\n", ""), Some(0));
        assert_eq!(VERSION_2.left("max\n", "700\n", statistics), None);
        let statistics = "inactive_file 1\ntotal_inactive_file 50\n";
        assert_eq!(VERSION_1.left("1000\n", "700\n", statistics), Some(350));
    }

    #[test]
    fn the_tightest_of_the_groups_around_the_process_counts() {
        let mut files = vec![
            MEMINFO,
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "5000000"),
            ("sys/fs/cgroup/outer/inner/memory.current", "1000000"),
            ("sys/fs/cgroup/outer/memory.max", "3000000"),
            ("sys/fs/cgroup/outer/memory.current", "2000000"),
            ("sys/fs/cgroup/outer/memory.stat", "inactive_file 500000"),
        ];
        assert_eq!(available_under(system(&files).path()), 1_500_000);
        files.extend([("sys/fs/cgroup/memory.max", "1000000"), ("sys/fs/cgroup/memory.current", "400000")]);
        assert_eq!(available_under(system(&files).path()), 600_000);
    }

    /// A container that sees the path outside, or one beside its root.
    #[test]
    fn groups_that_cannot_be_seen_are_passed_over() {
        for group in ["0::/docker/0123\n", "0::/../0123\n", "0::/../..\n", "0::/\n"] {
            let files = [
                MEMINFO,
                ("proc/self/cgroup", group),
                ("sys/fs/cgroup/memory.max", "3000000"),
                ("sys/fs/cgroup/memory.current", "1000000"),
                ("sys/fs/memory.max", "1"),
                ("sys/fs/memory.current", "1"),
            ];
            assert_eq!(available_under(system(&files).path()), 2_000_000, "{group}");
        }
    }

    #[test]
    fn the_memory_controller_of_version_1_counts_too() {
        let groups = "12:devices:/a\n4:cpu,memory:/jobs/7\n1:name=systemd:/b\n0::/c\n";
        let files = [
            MEMINFO,
            ("proc/self/cgroup", groups),
            ("sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "9223372036854771712"),
            ("sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "2000000"),
            ("sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "1500000"),
            ("sys/fs/cgroup/memory/jobs/memory.stat", "total_inactive_file 100000"),
        ];
        assert_eq!(available_under(system(&files).path()), 600_000);
        assert_eq!(memory_controller("4:memoryless:/a\n0::/\nodd line\n"), None);
    }

    #[test]
    fn a_limit_on_addresses_counts_less_those_in_use() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max address space         3072000              unlimited            bytes     \n";
        let files =
            [MEMINFO, ("proc/self/limits", limits), ("proc/self/status", "VmPeak:\t 9 kB\nVmSize:\t  1000 kB\n")];
        assert_eq!(available_under(system(&files).path()), 2_048_000);
        assert_eq!(address_space(limits, "VmSize:\t 4000 kB"), Some(0));
        assert_eq!(address_space(limits, ""), None);
    }
}
