//! The system archive: one file with the compiled configuration, the kernels and the RAM disks.
//!
//! xtask [`write()`]s it; the loader puts it beside the hypervisor, which reads it in place: [`verify`] touches every
//! byte once and [`Verified::open`] only the contents, so that the cost of each can be told apart. All numbers are
//! little-endian:
//!
//! ```text
//!  0  "BULKHEAD"
//!  8  version, 32 bits          12  flags, 32 bits: none is defined
//! 16  length of the whole archive, 64 bits
//! 24  XXH64 of all that follows, 64 bits
//! 32  length of the system, 64 bits
//! 40  the system (postcard), then the names and lengths of the files (postcard), then zeros
//!     file 0 from the next multiple of 4 KiB, then zeros
//!     file 1 from the next multiple of 4 KiB, and so on: no place is written down that could be wrong
//! ```
//!
//! The checksum finds damage, not malice: who can replace the archive can replace the hypervisor beside it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use super::check::{Limits, MAX_CPUS, check};
use super::problem::Problem;
use super::{FileId, Size, System, Undecodable, decode_value, encode};

const MAGIC: &[u8; 8] = b"BULKHEAD";
const VERSION: u32 = 2;
const CHECKED_FROM: usize = 32;
const CONTENTS_FROM: usize = 40;
/// What each file starts at a multiple of: a page, so that a file can be mapped.
const FILE_ALIGNMENT: usize = 4096;

/// An archive that was read.
#[derive(Debug)]
pub struct Archive<'a> {
    system: System,
    files: Vec<File<'a>>,
}

/// One file of an archive.
#[derive(Debug)]
pub struct File<'a> {
    /// What the integrator called it; for people.
    pub name: String,
    /// The content.
    pub bytes: &'a [u8],
}

/// An archive whose length and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a>(&'a [u8]);

#[derive(Serialize, Deserialize)]
struct Entry<S> {
    name: S,
    bytes: u64,
}

/// Writes an archive. The index of a file is its [`FileId`].
#[must_use]
pub fn write(system: &System, files: &[(&str, &[u8])]) -> Vec<u8> {
    let system = encode(system);
    let entries: Vec<_> =
        files.iter().map(|(name, bytes)| Entry { name: *name, bytes: bytes.len() as u64 }).collect();
    let table = postcard::to_allocvec(&entries).expect("strings and integers always encode");

    let mut archive = Vec::with_capacity(CONTENTS_FROM);
    archive.extend_from_slice(MAGIC);
    archive.extend_from_slice(&VERSION.to_le_bytes());
    archive.resize(CHECKED_FROM, 0);
    archive.extend_from_slice(&(system.len() as u64).to_le_bytes());
    archive.extend_from_slice(&system);
    archive.extend_from_slice(&table);
    for (_, bytes) in files {
        archive.resize(archive.len().next_multiple_of(FILE_ALIGNMENT), 0);
        archive.extend_from_slice(bytes);
    }
    let total = archive.len() as u64;
    let checksum = XxHash64::oneshot(0, &archive[CHECKED_FROM..]);
    archive[16..24].copy_from_slice(&total.to_le_bytes());
    archive[24..32].copy_from_slice(&checksum.to_le_bytes());
    archive
}

/// Checks the header and the checksum. `bytes` may go on after the archive.
///
/// # Errors
/// [`ArchiveError`], if this is not a whole, undamaged archive of the version that is read here.
pub fn verify(bytes: &[u8]) -> Result<Verified<'_>, ArchiveError> {
    if !bytes.starts_with(MAGIC) {
        return Err(ArchiveError::NotAnArchive);
    }
    let cut_short = ArchiveError::Truncated { expected: None, found: bytes.len() as u64 };
    let [version, flags] = [8, 12].map(|at| bytes.get(at..).and_then(|rest| rest.first_chunk().copied()));
    let version = version.map(u32::from_le_bytes).ok_or(cut_short.clone())?;
    if version != VERSION {
        return Err(ArchiveError::Version { found: version });
    }
    let flags = flags.map(u32::from_le_bytes).ok_or(cut_short.clone())?;
    if flags != 0 {
        return Err(ArchiveError::Flags { found: flags });
    }
    let total = number(bytes, 16).ok_or(cut_short.clone())?;
    let expected = number(bytes, 24).ok_or(cut_short)?;
    let whole = usize::try_from(total).ok().and_then(|total| bytes.get(..total));
    let whole = whole.ok_or(ArchiveError::Truncated { expected: Some(total), found: bytes.len() as u64 })?;
    let checked = whole.get(CHECKED_FROM..).ok_or(ArchiveError::Damaged)?;
    if XxHash64::oneshot(0, checked) != expected {
        return Err(ArchiveError::Damaged);
    }
    Ok(Verified(whole))
}

impl<'a> Verified<'a> {
    /// Reads the contents and checks the system.
    ///
    /// # Errors
    /// [`ArchiveError`], if the contents are not as [`write()`] lays them out, or describe what cannot work.
    pub fn open(self) -> Result<Archive<'a>, ArchiveError> {
        let (system, table, table_end) = self.contents()?;
        let files = self.files(table, table_end)?;
        let file_bytes: Vec<u64> = files.iter().map(|file| file.bytes.len() as u64).collect();
        match check(&system, &Limits { cpus: MAX_CPUS, file_bytes: &file_bytes }) {
            Ok(()) => Ok(Archive { system, files }),
            Err(problems) => Err(ArchiveError::Refused(problems)),
        }
    }

    fn contents(self) -> Result<(System, Vec<Entry<String>>, usize), ArchiveError> {
        let system_bytes = number(self.0, CHECKED_FROM).ok_or(ArchiveError::Layout)?;
        let (system, rest) = usize::try_from(system_bytes)
            .ok()
            .and_then(|length| self.0.get(CONTENTS_FROM..)?.split_at_checked(length))
            .ok_or(ArchiveError::Layout)?;
        let system = decode_value(system).map_err(ArchiveError::Unreadable)?;
        let (table, rest) = postcard::take_from_bytes(rest).map_err(|_| ArchiveError::Layout)?;
        Ok((system, table, self.0.len() - rest.len()))
    }

    fn files(self, table: Vec<Entry<String>>, table_end: usize) -> Result<Vec<File<'a>>, ArchiveError> {
        let mut at = table_end;
        let mut files = Vec::with_capacity(table.len());
        for Entry { name, bytes } in table {
            let start = at.checked_next_multiple_of(FILE_ALIGNMENT).ok_or(ArchiveError::Layout)?;
            let end = usize::try_from(bytes).ok().and_then(|length| start.checked_add(length));
            at = end.ok_or(ArchiveError::Layout)?;
            files.push(File { name, bytes: self.0.get(start..at).ok_or(ArchiveError::Layout)? });
        }
        if at == self.0.len() { Ok(files) } else { Err(ArchiveError::Layout) }
    }
}

impl<'a> Archive<'a> {
    /// Verifies and reads an archive: both steps in one.
    ///
    /// # Errors
    /// As [`verify`] and [`Verified::open`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        verify(bytes)?.open()
    }

    /// What the archive describes; it has passed [`check`].
    #[must_use]
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The content of one file. Every [`FileId`] that [`Archive::system`] names has one.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<&'a [u8]> {
        self.files.get(usize::try_from(id.0).ok()?).map(|file| file.bytes)
    }

    /// All files, by [`FileId`].
    #[must_use]
    pub fn files(&self) -> &[File<'a>] {
        &self.files
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// Why an archive is not used. Shown as one line: what, and how to mend it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArchiveError {
    /// It does not start as an archive does.
    NotAnArchive,
    /// It has another version than this program reads.
    Version {
        /// That version.
        found: u32,
    },
    /// It has flags that this program does not know.
    Flags {
        /// Those flags.
        found: u32,
    },
    /// It ends too early.
    Truncated {
        /// The length that it should have, if that much is there to tell.
        expected: Option<u64>,
        /// The length that it has.
        found: u64,
    },
    /// Its checksum is wrong.
    Damaged,
    /// Its checksum is right, but its parts do not fit together: another program wrote it.
    Layout,
    /// Its system is not the compiled form of one.
    Unreadable(Undecodable),
    /// Its system cannot work: what [`check`] found.
    Refused(Vec<Problem>),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const AGAIN: &str = "pack it again with `cargo xtask pack`";
        match self {
            Self::NotAnArchive => {
                write!(
                    f,
                    "this is not a system archive; load the `system.archive` that `cargo xtask pack` wrote"
                )
            }
            Self::Version { found } => write!(
                f,
                "the system archive has version {found}, this hypervisor reads version {VERSION}; {AGAIN} of the same release"
            ),
            Self::Flags { found } => {
                write!(
                    f,
                    "the system archive has unknown flags {found:#x}: it is damaged or too new; {AGAIN}"
                )
            }
            Self::Truncated { expected: Some(expected), found } => {
                let (expected, found) = (Size(*expected), Size(*found));
                write!(
                    f,
                    "the system archive is cut short: {found} instead of {expected}; load it again or {AGAIN}"
                )
            }
            Self::Truncated { expected: None, found } => {
                write!(f, "the system archive is cut short: only {}; load it again or {AGAIN}", Size(*found))
            }
            Self::Damaged => {
                write!(f, "the system archive is damaged: its checksum is wrong; load it again or {AGAIN}")
            }
            Self::Layout => write!(f, "the parts of the system archive do not fit together; {AGAIN}"),
            Self::Unreadable(why) => {
                write!(f, "the configuration in the system archive is not readable: {why}; {AGAIN}")
            }
            Self::Refused(problems) => match problems.split_first() {
                Some((first, [])) => write!(f, "{first}"),
                Some((first, more)) => write!(f, "{first} (and {} more)", more.len()),
                None => write!(f, "the system in the archive cannot work; {AGAIN}"),
            },
        }
    }
}

impl core::error::Error for ArchiveError {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    use super::super::Vm;
    use super::super::tests::{any_system, linux, system};
    use super::*;

    const FILES: [(&str, &[u8]); 2] = [("Image", &[7; 5000]), ("initrd", b"070701")];

    fn sample() -> Vec<u8> {
        write(&system(vec![linux()]), &FILES)
    }

    /// What an archive would be if its writer had meant `bytes` so.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let total = bytes.len() as u64;
        let checksum = XxHash64::oneshot(0, &bytes[CHECKED_FROM..]);
        bytes[16..24].copy_from_slice(&total.to_le_bytes());
        bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = sample();
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(*archive.system(), system(vec![linux()]));
        let files: Vec<_> = archive.files().iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        assert_eq!(files, FILES);
        assert_eq!(archive.file(FileId(1)), Some(&b"070701"[..]));
        assert!(archive.file(FileId(2)).is_none());
    }

    #[test]
    fn files_start_at_pages() {
        let bytes = sample();
        let archive = Archive::parse(&bytes).unwrap();
        for file in archive.files() {
            assert_eq!((file.bytes.as_ptr().addr() - bytes.as_ptr().addr()) % FILE_ALIGNMENT, 0);
        }
    }

    #[test]
    fn what_a_loader_leaves_behind_the_archive_does_not_matter() {
        let mut bytes = sample();
        bytes.extend_from_slice(&[0xff; 100]);
        assert!(Archive::parse(&bytes).is_ok());
    }

    #[test]
    fn a_single_flipped_bit_is_found() {
        let mut bytes = sample();
        let all_of_the_contents = 0..200 * 8;
        let some_of_the_rest = (200 * 8..bytes.len() * 8).step_by(97);
        for bit in all_of_the_contents.chain(some_of_the_rest) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn each_truncation_is_found() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(verify(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn each_cause_has_its_line() {
        let line = |bytes: &[u8]| Archive::parse(bytes).unwrap_err().to_string();
        let altered = |at: usize, value: u8| {
            let mut bytes = sample();
            bytes[at] = value;
            bytes
        };
        assert!(line(b"\x1f\x8b\x08 something else").starts_with("this is not a system archive; load"));
        assert!(
            line(&altered(8, 9)).contains("has version 9, this hypervisor reads version 2; pack it again")
        );
        assert!(line(&altered(12, 2)).contains("unknown flags 0x2"));
        assert!(line(&sample()[..4096]).contains("cut short: 4 KiB instead of 12294 bytes; load it again"));
        assert!(line(&sample()[..20]).contains("cut short: only 20 bytes"));
        assert!(line(&altered(5000, 8)).contains("its checksum is wrong"));
        assert!(line(&sealed(altered(40, 9))).contains("a value that does not exist; pack it again"));
        assert!(line(&sealed(altered(32, 200))).contains("not readable"));
        assert!(line(&sealed(altered(39, 200))).contains("do not fit together"));
        assert!(line(&sealed([sample(), vec![0]].concat())).contains("do not fit together"));
    }

    #[test]
    fn a_system_that_cannot_work_is_refused() {
        let bytes = write(&system(vec![Vm { vcpus: 0, ram_bytes: 0, ..linux() }]), &FILES);
        let error = Archive::parse(&bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "VM `linux`: 0 vCPUs cannot run anything; give the VM 1 to 16 (and 1 more)"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Archive::parse(&bytes).map_err(|error| error.to_string());
            // Behind a sound header, too.
            let mut header = sample();
            header.truncate(CHECKED_FROM);
            let _ = Archive::parse(&sealed([header, bytes].concat())).map_err(|error| error.to_string());
        }

        #[test]
        fn an_altered_and_sealed_archive_is_read_or_refused(at in 32..200_usize, value: u8, system in any_system()) {
            let mut bytes = write(&system, &FILES);
            bytes[at] = value;
            let _ = Archive::parse(&sealed(bytes)).map_err(|error| error.to_string());
        }
    }
}
