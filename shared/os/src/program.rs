//! The program's own pages in memory.

use nix::sys::mman::{MmapAdvise, madvise};
use std::{ffi::c_void, fs, io, num::NonZeroUsize, ops::Range, ptr::NonNull};

/// Takes the pages of the program and its libraries out of this process' memory, where they are as in their files.
/// Those that are used come back, each by a page fault and out of the page cache: no file is read, unless
/// the system has dropped it from there. What is left out is what only ran once: options, files, a first
/// configuration. Returns how many bytes of address space it was asked for.
///
/// Only mappings that can't be written and have no page of their own are touched, so that nothing is lost: neither what the
/// loader relocated, nor what a debugger put there.
///
/// # Errors
/// `/proc/self/smaps` can't be read, or the system refused.
pub fn unmap_program() -> io::Result<u64> {
    let mut asked = 0;
    for mapping in as_in_their_files(&fs::read_to_string("/proc/self/smaps")?) {
        let length = mapping.len();
        let Some(start) = NonZeroUsize::new(mapping.start) else { continue };
        let start = NonNull::<c_void>::without_provenance(start);
        // SAFETY: the range is one mapping of this process that maps a file privately, can't be written, and has no page
        // that differs from the file. So what a later read finds there, out of the file again, is what it finds now.
        #[expect(unsafe_code, reason = "the advice to drop pages may lose data, elsewhere")]
        unsafe {
            madvise(start, length, MmapAdvise::MADV_DONTNEED)?;
        }
        asked += length as u64;
    }
    Ok(asked)
}

/// The mappings of files, out of `smaps`, that are private, can't be written, and have no page of their own, in
/// memory or swapped out.
fn as_in_their_files(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut present = None;
    let mut in_memory = false;
    for line in smaps.lines() {
        if let Some(mapping) = head(line) {
            (present, in_memory) = (mapping, false);
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (name, size) = (words.next(), words.next());
        match name {
            Some("Anonymous:") if size == Some("0") => in_memory = true,
            // It is told after the other.
            Some("Swap:") if size == Some("0") && in_memory => found.extend(present.take()),
            _ => {}
        }
    }
    found
}

/// `55d0c0a1c000-55d0c19ac000 r-xp 0041c000 fe:00 9980484    /usr/bin/program`: where it is, if it is of that kind.
/// `None`: the line begins no mapping.
fn head(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let (access, inode) = (words.next()?, words.nth(2)?);
    let fits = access.starts_with("r-") && access.ends_with('p') && inode != "0";
    Some(Some(range).filter(|_| fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 r--p 00000000 fe:00 99 /bin/p
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
3000-9000 r-xp 00002000 fe:00 99 /bin/p
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
9000-a000 r--p 00008000 fe:00 99 /bin/p
Anonymous:             4 kB
Swap:                  0 kB
9800-a000 r--p 00008800 fe:00 99 /bin/p
Anonymous:             0 kB
Swap:                  4 kB
a000-b000 rw-p 00009000 fe:00 99 /bin/p
Anonymous:             0 kB
Swap:                  0 kB
b000-c000 rw-p 00000000 00:00 0 [heap]
Anonymous:             0 kB
Swap:                  0 kB
c000-d000 r--p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
d000-e000 r--s 00000000 fe:00 98 /var/cache/shared
Anonymous:             0 kB
Swap:                  0 kB
f000-10000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
Swap:                  0 kB
";

    #[test]
    fn only_what_is_as_in_its_file_is_taken() {
        assert_eq!(as_in_their_files(SMAPS), [0x1000..0x3000, 0x3000..0x9000]);
    }

    /// Resident code of this process, in KiB.
    fn resident() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_code = false;
        let mut all = 0;
        for line in smaps.lines() {
            match head(line) {
                Some(_) => is_code = line.contains(" r-xp "),
                None if is_code && line.starts_with("Rss:") => {
                    all += line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
                }
                None => {}
            }
        }
        all
    }

    #[test]
    fn a_process_has_less_in_memory_and_goes_on() {
        let before = resident();
        assert!(unmap_program().unwrap() > 0);
        let after = resident();
        assert!(after < before, "{after} KiB of {before}");
        // The code that asks is back, and relocated data were never gone.
        let names: Vec<String> = (0..1_000).map(|n| format!("{n:x}")).collect();
        assert_eq!(names.last().map(String::as_str), Some("3e7"));
    }
}
