//! A guest's RAM for tests: what [`Prepared`] says, copied as a start would.

use crate::pc_boot::{Content, Guest, Prepared};
use bulkhead_vdev::Gpa;
use std::ops::Range;
use std::string::String;
use std::vec;
use std::vec::Vec;

pub(crate) const GUEST: Guest<'_> = Guest {
    ram_bytes: 64 << 20,
    vcpus: 2,
    command_line: "console=ttyS0",
    initrd_bytes: Some(5000),
    rng_seed: None,
};

pub(crate) struct Memory(Vec<u8>);

impl Memory {
    /// RAM of [`GUEST`], full of old data, with everything copied; each byte at most once.
    pub(crate) fn load(prepared: &Prepared, kernel: &[u8], initrd: &[u8]) -> Self {
        let mut memory = vec![0xa5; usize::try_from(GUEST.ram_bytes).unwrap()];
        let mut taken: Vec<Range<usize>> = Vec::new();
        for piece in &prepared.pieces {
            let zeros;
            let bytes = match &piece.content {
                Content::Kernel(part) => &kernel[part.clone()],
                Content::Initrd => initrd,
                Content::Bytes(bytes) => bytes,
                Content::Fixed(bytes) => bytes,
                Content::Zeros(count) => {
                    zeros = vec![0; usize::try_from(*count).unwrap()];
                    &zeros
                }
            };
            let start = usize::try_from(piece.to.0).unwrap();
            let place = start..start + bytes.len();
            assert!(taken.iter().all(|other| other.end <= place.start || place.end <= other.start));
            memory[place.clone()].copy_from_slice(bytes);
            taken.push(place);
        }
        Self(memory)
    }

    pub(crate) fn bytes(&self, at: u64, count: usize) -> &[u8] {
        &self.0[usize::try_from(at).unwrap()..][..count]
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        self.bytes(at, 1)[0]
    }

    pub(crate) fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    pub(crate) fn double(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    /// The text at `at`, up to its final zero.
    pub(crate) fn text(&self, at: u64) -> String {
        let bytes = &self.0[usize::try_from(at).unwrap()..];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}

/// An ELF program header: kind, alignment, addresses, bytes in the file, bytes in memory.
pub(crate) struct Segment<'a> {
    pub(crate) kind: u32,
    pub(crate) virtual_address: u64,
    pub(crate) physical: u64,
    pub(crate) content: &'a [u8],
    pub(crate) bytes: u64,
}

/// An ELF64 file with these segments, contents from 0x1000 on, each from a multiple of 16.
pub(crate) fn elf64(entry: u64, segments: &[Segment<'_>]) -> Vec<u8> {
    const HEADER: usize = 64;
    const CONTENTS: usize = 0x1000;
    let mut file = vec![0; CONTENTS];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut set = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    set(16, &2_u16.to_le_bytes());
    set(18, &62_u16.to_le_bytes());
    set(20, &1_u32.to_le_bytes());
    set(24, &entry.to_le_bytes());
    set(32, &(HEADER as u64).to_le_bytes());
    set(52, &64_u16.to_le_bytes());
    set(54, &56_u16.to_le_bytes());
    set(56, &u16::try_from(segments.len()).unwrap().to_le_bytes());
    let mut contents = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        contents.resize(contents.len().next_multiple_of(16), 0);
        let at = HEADER + index * 56;
        set(at, &segment.kind.to_le_bytes());
        let numbers = [
            (CONTENTS + contents.len()) as u64,
            segment.virtual_address,
            segment.physical,
            segment.content.len() as u64,
            segment.bytes,
            4,
        ];
        for (number, value) in numbers.iter().enumerate() {
            set(at + 8 + number * 8, &value.to_le_bytes());
        }
        contents.extend_from_slice(segment.content);
    }
    file.extend(contents);
    file
}

/// What `start` says of registers and so on, for protected mode: entry, EBX, EAX.
pub(crate) fn protected(prepared: &Prepared) -> (Gpa, Gpa, u32) {
    match prepared.start {
        crate::pc_boot::Start::Protected { entry, ebx, eax, .. } => (entry, ebx, eax),
        other => panic!("{other:?}"),
    }
}
