//! Memory that this process may still take.
//!
//! Owns every limit on it that the system tells, and that of the user: what the machine has left, what control groups
//! allow, what the shell's `ulimit` does. Linux only; what for is the callers' business.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What this process may take in all by its user's word; 0 where nothing was said.
static MAX_PROCESS_BYTES: AtomicU64 = AtomicU64::new(0);

/// Has this process take no more than so much in all, as far as it asks what is available.
pub(crate) fn limit_process(max_bytes: u64) {
    MAX_PROCESS_BYTES.store(max_bytes, Ordering::Relaxed);
}

/// Memory that can still be taken without swapping and within all limits, in bytes; `None` where the
/// system does not tell.
pub(crate) fn available_bytes() -> Option<u64> {
    let available = available_under(Path::new("/"))?;
    Some(match MAX_PROCESS_BYTES.load(Ordering::Relaxed) {
        0 => available,
        max_bytes => available.min(max_bytes.saturating_sub(resident_bytes().unwrap_or(0))),
    })
}

/// Address space that the program's allocator (mimalloc, on Linux) takes as it starts, where there is as much, for what
/// will be asked of it: no other part of the program has taken half of that then.
const RESERVED_BYTES: u64 = 1 << 30;

/// What the limit on this process's address space leaves of it at its start, what its allocator has in reserve
/// included; `None` where there is none.
pub(crate) fn address_space_left() -> Option<u64> {
    let left = process_limit_left(Path::new("/"), "Max address space", "VmSize:")?;
    let is_reserved = kib_in("/proc/self/status", "VmSize:").is_some_and(|taken| taken >= RESERVED_BYTES);
    Some(if is_reserved { left + RESERVED_BYTES } else { left })
}

/// Memory that this process has resident now.
pub(crate) fn resident_bytes() -> Option<u64> {
    kib_in("/proc/self/status", "VmRSS:")
}

/// An amount of memory in one of Linux's `/proc` files, in bytes.
pub(crate) fn kib_in(path: impl AsRef<Path>, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The same of the system whose files are under `root`.
fn available_under(root: &Path) -> Option<u64> {
    let machine = kib_in(root.join("proc/meminfo"), "MemAvailable:")?;
    let of_groups = group_folders(root).into_iter().filter_map(|(folder, version)| version.num_left(&folder));
    let of_process = [("Max address space", "VmSize:"), ("Max data size", "VmData:")]
        .into_iter()
        .filter_map(|(limit, taken)| process_limit_left(root, limit, taken));
    of_groups.chain(of_process).chain([machine]).min()
}

/// What a soft limit of this process leaves of what it has taken.
fn process_limit_left(root: &Path, limit: &str, taken: &str) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
    // "unlimited" is no number.
    let max_bytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(max_bytes.saturating_sub(kib_in(root.join("proc/self/status"), taken)?))
}

/// The two kinds of control groups, which name their files differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupVersion {
    V1,
    V2,
}

impl GroupVersion {
    /// What the limits of one group leave; page cache that nobody needs is given back before they bite.
    fn num_left(self, folder: &Path) -> Option<u64> {
        let (limits, usage, reclaimable): (&[&str], _, _) = match self {
            Self::V1 => (&["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"),
            Self::V2 => (&["memory.max", "memory.high"], "memory.current", "inactive_file"),
        };
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        // "max" is no number.
        let max_bytes = limits.iter().filter_map(|file| number(file)).min()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let fields = stat.lines().filter_map(|line| line.split_once(' '));
        let reclaimable =
            fields.filter(|(name, _)| *name == reclaimable).find_map(|(_, n)| n.trim().parse().ok());
        let taken = number(usage).unwrap_or(0).saturating_sub(reclaimable.unwrap_or(0));
        Some(max_bytes.saturating_sub(taken))
    }

    fn from_mount(file_system: &str, options: &str) -> Option<Self> {
        match file_system {
            "cgroup2" => Some(Self::V2),
            "cgroup" if options.split(',').any(|option| option == "memory") => Some(Self::V1),
            _ => None,
        }
    }

    /// This process's group, as `/proc/self/cgroup` names it.
    fn path_in(self, groups: &str) -> Option<&str> {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = match self {
                Self::V1 => controllers.split(',').any(|controller| controller == "memory"),
                Self::V2 => controllers.is_empty(),
            };
            is_it.then_some(path)
        })
    }
}

/// The folders of the groups that this process is in, from its own up to the outermost that can be seen.
fn group_folders(root: &Path) -> Vec<(PathBuf, GroupVersion)> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let groups = read("proc/self/cgroup");
    let mut folders = Vec::new();
    for line in read("proc/self/mountinfo").lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (file_system, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let mut before = before.split(' ').skip(3);
        let (Some(version), Some(mounted), Some(place)) =
            (GroupVersion::from_mount(file_system, options), before.next(), before.next())
        else {
            continue;
        };
        let Some(group) = version.path_in(&groups) else { continue };
        let top = root.join(place.trim_start_matches('/'));
        // In a container the group's path may be one that only the host can see: what is mounted is the
        // container's own then.
        let below = Path::new(group).strip_prefix(mounted).unwrap_or(Path::new(""));
        let below =
            if below.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { below };
        folders.extend(below.ancestors().map(|folder| (top.join(folder), version)));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A folder tree with these files under it.
    fn tree(files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("there is room");
            fs::write(path, text).expect("there is room");
        }
        root
    }

    /// A machine with 64 GiB available, and these files beside.
    fn available(files: &[(&str, String)]) -> Option<u64> {
        let machine = ("proc/meminfo", format!("MemTotal: 1 kB\nMemAvailable:   {} kB\n", 64 * GIB / 1024));
        let status =
            ("proc/self/status", format!("VmSize:\t{} kB\nVmData:\t{} kB\n", GIB / 1024, GIB / 2048));
        available_under(tree(&[&[machine, status], files].concat()).path())
    }

    fn bytes(gib: u64) -> String {
        format!("{}\n", gib * GIB)
    }

    fn v2() -> Vec<(&'static str, String)> {
        vec![
            ("proc/self/cgroup", "0::/jobs/job 7\n".to_owned()),
            (
                "proc/self/mountinfo",
                "22 1 0:20 / /proc rw - proc proc rw\n\
                 30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
                    .to_owned(),
            ),
            ("sys/fs/cgroup/jobs/job 7/memory.max", "max\n".to_owned()),
            ("sys/fs/cgroup/jobs/job 7/memory.high", bytes(20)),
            ("sys/fs/cgroup/jobs/job 7/memory.current", bytes(5)),
            ("sys/fs/cgroup/jobs/job 7/memory.stat", format!("anon 3\ninactive_file {}\n", 2 * GIB)),
        ]
    }

    #[test]
    fn without_limits_it_is_what_the_machine_has_left() {
        assert_eq!(available(&[]), Some(64 * GIB));
        assert_eq!(available_under(tree(&[]).path()), None);
        let limits =
            "Limit     Soft Limit  Hard Limit  Units\nMax address space   unlimited   unlimited   bytes\n";
        assert_eq!(available(&[("proc/self/limits", limits.to_owned())]), Some(64 * GIB));
        if cfg!(target_os = "linux") {
            assert!(available_bytes().expect("Linux tells") > 0);
        }
    }

    #[test]
    fn a_group_of_version_2_counts_with_all_above_it() {
        assert_eq!(available(&v2()), Some(17 * GIB), "20 less 5, of which 2 can be reclaimed");
        let above =
            [("sys/fs/cgroup/jobs/memory.max", bytes(30)), ("sys/fs/cgroup/jobs/memory.current", bytes(24))];
        assert_eq!(available(&[&v2()[..], &above].concat()), Some(6 * GIB));
        let over = ("sys/fs/cgroup/jobs/memory.current", bytes(31));
        assert_eq!(available(&[&v2()[..], &above, &[over]].concat()), Some(0));
        // A container sees its own group as the root, under whatever name.
        let seen =
            [("proc/self/cgroup", "0::/../other\n".to_owned()), ("sys/fs/cgroup/memory.max", bytes(3))];
        assert_eq!(available(&[&v2()[..], &seen].concat()), Some(3 * GIB));
    }

    #[test]
    fn a_group_of_version_1_counts() {
        let mut files = vec![
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/ab\n0::/x\n".to_owned()),
            (
                "proc/self/mountinfo",
                "31 1 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                 33 1 0:29 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                    .to_owned(),
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", bytes(8)),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", bytes(6)),
            ("sys/fs/cgroup/memory/memory.stat", format!("total_inactive_file {GIB}\n")),
        ];
        assert_eq!(available(&files), Some(3 * GIB));
        // No limit is a very large number.
        files[2].1 = "9223372036854771712\n".to_owned();
        assert_eq!(available(&files), Some(64 * GIB));
    }

    #[test]
    fn limits_of_the_process_count() {
        let limits = |address_space: &str, data: &str| {
            let text = format!(
                "Limit          Soft Limit      Hard Limit    Units\nMax data size   {data}   unlimited  bytes\n\
                 Max address space   {address_space}   unlimited   bytes\n"
            );
            available(&[("proc/self/limits", text)])
        };
        assert_eq!(limits(bytes(4).trim(), "unlimited"), Some(3 * GIB));
        assert_eq!(limits("unlimited", bytes(2).trim()), Some(2 * GIB - GIB / 2));
        assert_eq!(limits("1000", bytes(2).trim()), Some(0));
    }
}
