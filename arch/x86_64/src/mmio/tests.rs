//! Instructions carried out against an independent CPU's results (`tests/vectors`), and what that CPU does not show: faults,
//! page ends, ports.

use super::*;
use crate::control::{Controls, cr0};
use bulkhead_vdev::OutsideRam;
use std::cell::RefCell;
use std::string::String;
use std::vec::Vec;

const CODE: u64 = 0x1000;
const RAM: u64 = 0x2000;
const DEVICE: u64 = 0x9000;
const WINDOW: usize = 0x200;
const COUNTED_FLAGS: u64 = 0x8d5;

/// RAM from [`RAM`], and nothing else.
struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn range(&self, at: Gpa, len: usize) -> Result<core::ops::Range<usize>, OutsideRam> {
        let start = usize::try_from(at.0.checked_sub(RAM).ok_or(OutsideRam)?).map_err(|_| OutsideRam)?;
        let end = start.checked_add(len).filter(|end| *end <= self.0.borrow().len()).ok_or(OutsideRam)?;
        Ok(start..end)
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        into.copy_from_slice(&self.0.borrow()[self.range(at, into.len())?]);
        Ok(())
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        let range = self.range(at, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

struct Cpu {
    registers: [u64; 16],
    rflags: u64,
    size: CodeSize,
    segments: [Segment; 6],
    real: bool,
    user: bool,
    paging: Paging,
}

impl Cpu {
    fn new(size: CodeSize) -> Self {
        let base = |number: u64| if size == CodeSize::Bits16 { number * 16 } else { 0 };
        let limit = if size == CodeSize::Bits16 { 0xffff } else { u32::MAX };
        // Accessed, writable data (or readable code, which is the same bit), present.
        let segments = [0x20, 0x10, 0x30, 0x40, 0x50, 0x60].map(|selector| Segment {
            base: base(selector),
            limit,
            attributes: 0x93,
            ..Segment::default()
        });
        let paging = Paging::new(&Controls { cr0: cr0::PE, ..Controls::default() }, None, 40);
        Self {
            registers: [0; 16],
            rflags: 2,
            size,
            segments,
            real: size == CodeSize::Bits16,
            user: false,
            paging,
        }
    }
}

impl Guest for Cpu {
    fn register(&self, number: u8) -> u64 {
        self.registers[usize::from(number)]
    }
    fn set_register(&mut self, number: u8, value: u64) {
        self.registers[usize::from(number)] = value;
    }
    fn rip(&self) -> u64 {
        CODE - self.segments[1].base
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }
    fn code_size(&self) -> CodeSize {
        self.size
    }
    fn has_real_segments(&self) -> bool {
        self.real
    }
    fn is_user(&self) -> bool {
        self.user
    }
    fn paging(&self) -> Paging {
        self.paging
    }
}

/// Answers a plan's questions out of `device` until the instruction is done, all its elements included.
fn carry_out(code: &[u8], refused: Refused, cpu: &mut Cpu, ram: &Ram, device: &mut [u8]) {
    let instruction = insn::decode(code, cpu.size).unwrap();
    assert_eq!(usize::from(instruction.length), code.len());
    for _ in 0..8 {
        let mut step = begin(&instruction, refused, cpu, ram);
        loop {
            match step {
                Step::Ask(Place::Memory(at), access, plan) => {
                    let start = usize::try_from(at.0 - DEVICE).unwrap();
                    let bytes = usize::try_from(access.width().bytes()).unwrap();
                    let place = &mut device[start..start + bytes];
                    let mut value = [0; 8];
                    match access {
                        Access::Read(_) => value[..bytes].copy_from_slice(place),
                        Access::Write(_, value) => place.copy_from_slice(&value.to_le_bytes()[..bytes]),
                    }
                    step = plan.answer(u64::from_le_bytes(value), cpu, ram);
                }
                Step::Done(0) => break,
                Step::Done(length) => return assert_eq!(usize::from(length), code.len()),
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("too many elements");
}

/// SplitMix64's output for one state, as the generator has it.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn content(seed: u64, start: u64) -> Vec<u8> {
    (0..WINDOW as u64).step_by(8).flat_map(|offset| mix(seed ^ (start + offset)).to_le_bytes()).collect()
}

fn checksum(words: &[u64], blocks: [&[u8]; 2]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    let bytes = bytes.chain(blocks.into_iter().flatten().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |total, byte| (total ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

/// What came out for one line of the vectors, and what ought to.
fn vector(line: &str) -> (u64, u64) {
    let fields: Vec<&str> = line.split(' ').collect();
    let [bits, code, seed, at, kind, fixed, expected] = fields[..] else { panic!("{line}") };
    let code: Vec<u8> =
        (0..code.len()).step_by(2).map(|i| u8::from_str_radix(&code[i..i + 2], 16).unwrap()).collect();
    let seed = hex(seed);
    let (size, count) = match bits {
        "16" => (CodeSize::Bits16, 8),
        "32" => (CodeSize::Bits32, 8),
        _ => (CodeSize::Bits64, 16),
    };
    let mask = if count == 8 { 0xffff_ffff } else { u64::MAX };
    let mut cpu = Cpu::new(size);
    for number in 0..count {
        cpu.registers[number] = mix(seed ^ number as u64) & mask;
    }
    for pair in fixed.split(',').filter(|pair| *pair != "-") {
        let (number, value) = pair.split_once('=').unwrap();
        cpu.registers[usize::try_from(hex(number)).unwrap()] = hex(value) & mask;
    }
    cpu.rflags = 2 | mix(seed ^ 0x100) & (COUNTED_FLAGS | 0x400);
    let ram = Ram(RefCell::new(content(seed, RAM)));
    let mut device = content(seed, DEVICE);
    carry_out(&code, Refused { at: Gpa(hex(at)), write: kind == "w" }, &mut cpu, &ram, &mut device);
    let mut flags = cpu.rflags & COUNTED_FLAGS;
    // Of the other flags after bit tests the manual says nothing.
    if code
        .windows(2)
        .find(|pair| pair[0] == 0xf)
        .is_some_and(|pair| matches!(pair[1], 0xa3 | 0xab | 0xb3 | 0xbb | 0xba))
    {
        flags &= 0x41;
    }
    let mut words = cpu.registers[..count].to_vec();
    words.push(flags);
    (checksum(&words, [&ram.0.borrow(), &device]), hex(expected))
}

#[test]
fn random_instructions_do_what_an_independent_cpu_does() {
    let embedded = include_str!("../../tests/vectors/instructions.txt");
    // A longer campaign: a file of the generator's, named in the environment.
    let text = match std::env::var("BULKHEAD_VECTORS") {
        Ok(path) => std::fs::read_to_string(path).unwrap(),
        Err(_) => String::from(embedded),
    };
    let wrong: Vec<&str> = text
        .lines()
        .filter(|line| {
            let (found, expected) = vector(line);
            found != expected
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} differ, such as {:#?}",
        wrong.len(),
        text.lines().count(),
        &wrong[..wrong.len().min(30)]
    );
}

fn ram() -> Ram {
    Ram(RefCell::new(std::vec![0; 0x6000]))
}

fn first_step(code: &[u8], at: u64, write: bool, cpu: &mut Cpu, ram: &Ram) -> Step {
    begin(&insn::decode(code, cpu.size).unwrap(), Refused { at: Gpa(at), write }, cpu, ram)
}

/// Paging with one table tree in RAM: the page of linear addresses that is `pages` numbers leads where the entry says.
fn paged(cpu: &mut Cpu, ram: &Ram, pages: &[(u64, u64)]) {
    let controls = Controls { cr0: cr0::PE | cr0::PG | cr0::WP, cr3: RAM, ..Controls::default() };
    cpu.paging = Paging::new(&controls, None, 40);
    let put = |at: u64, value: u64| {
        ram.write(Gpa(at), &u32::try_from(value).unwrap().to_le_bytes()).unwrap();
    };
    put(RAM, (RAM + 0x1000) | 7);
    for (page, entry) in pages {
        put(RAM + 0x1000 + page * 4, *entry);
    }
}

/// The bytes of a device that are asked for from `step` on, with the value of each; a read gets the low byte of its place.
fn bytes_asked(mut step: Step, cpu: &mut Cpu, ram: &Ram) -> (Vec<(u64, Option<u64>)>, Step) {
    let mut asked = Vec::new();
    while let Step::Ask(Place::Memory(at), access, plan) = step {
        assert_eq!(access.width(), Width::Byte);
        asked.push((at.0, if let Access::Write(_, value) = access { Some(value) } else { None }));
        step = plan.answer(at.0, cpu, ram);
    }
    (asked, step)
}

#[test]
fn an_access_over_the_end_of_a_page_is_made_byte_by_byte() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits64), ram());
    cpu.registers[3] = DEVICE + 0xffe;
    let reads =
        [(DEVICE + 0xffe, None), (DEVICE + 0xfff, None), (DEVICE + 0x1000, None), (DEVICE + 0x1001, None)];
    // mov eax, [rbx]; either page may be the one that was refused
    for at in [DEVICE + 0xffe, DEVICE + 0x1000] {
        cpu.registers[0] = u64::MAX;
        let step = first_step(&[0x8b, 0x03], at, false, &mut cpu, &ram);
        assert_eq!(bytes_asked(step, &mut cpu, &ram), (reads.to_vec(), Step::Done(2)));
        assert_eq!(cpu.registers[0], 0x0100_fffe);
    }
    // mov [rbx], eax; or [rbx], eax
    cpu.registers[0] = 0x4433_2211;
    let writes = |bytes: [u64; 4]| (0..).zip(bytes).map(|(n, byte)| (DEVICE + 0xffe + n, Some(byte)));
    let step = first_step(&[0x89, 0x03], DEVICE + 0xffe, true, &mut cpu, &ram);
    let stored: Vec<_> = writes([0x11, 0x22, 0x33, 0x44]).collect();
    assert_eq!(bytes_asked(step, &mut cpu, &ram), (stored, Step::Done(2)));
    let step = first_step(&[0x09, 0x03], DEVICE + 0xffe, false, &mut cpu, &ram);
    let changed = reads.into_iter().chain(writes([0xff, 0xff, 0x33, 0x45])).collect();
    assert_eq!(bytes_asked(step, &mut cpu, &ram), (changed, Step::Done(2)));
    cpu.registers[3] = DEVICE;
    let step = first_step(&[0x8b, 0x03], DEVICE, false, &mut cpu, &ram);
    assert!(matches!(step, Step::Ask(Place::Memory(Gpa(DEVICE)), Access::Read(Width::Word), _)));
    assert_eq!(first_step(&[0x8b, 0x03], DEVICE + 0xffe, false, &mut cpu, &ram), Step::Retry, "code changed");
}

#[test]
fn an_access_may_begin_in_ram_and_end_in_a_device() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits32), ram());
    let pages = [(3, RAM + 0x3000 + 3), (4, DEVICE | 3), (5, DEVICE | 1)];
    paged(&mut cpu, &ram, &pages);
    ram.write(Gpa(RAM + 0x3ffe), &[0x34, 0x12]).unwrap();
    (cpu.registers[0], cpu.registers[3]) = (1, 0x3ffe);
    // add [ebx], eax
    let step = first_step(&[0x01, 0x03], DEVICE, false, &mut cpu, &ram);
    let asked = [(DEVICE, None), (DEVICE + 1, None), (DEVICE, Some(0)), (DEVICE + 1, Some(1))];
    assert_eq!(bytes_asked(step, &mut cpu, &ram), (asked.to_vec(), Step::Done(2)));
    assert_eq!(ram.0.borrow()[0x3ffe..0x4000], [0x35, 0x12]);
    // The same, the second page read-only: nothing is asked for.
    cpu.registers[3] = 0x4ffe;
    let step = first_step(&[0x01, 0x03], DEVICE + 0xffe, false, &mut cpu, &ram);
    assert_eq!(step, Step::Raise(Raise::PageFault(PageFault { address: 0x5000, code: 3 })));
    cpu.registers[3] = 0x3ffe;
    assert_eq!(
        first_step(&[0x01, 0x03], DEVICE + 0x2ffe, false, &mut cpu, &ram),
        Step::Retry,
        "tables changed"
    );
}

#[test]
fn an_element_may_lie_in_two_pages_of_devices() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits32), ram());
    (cpu.registers[6], cpu.registers[7]) = (DEVICE + 0xfff, DEVICE + 0x2fff);
    // movsw
    let step = first_step(&[0x66, 0xa5], DEVICE + 0xfff, false, &mut cpu, &ram);
    let asked = [
        (DEVICE + 0xfff, None),
        (DEVICE + 0x1000, None),
        (DEVICE + 0x2fff, Some(0xff)),
        (DEVICE + 0x3000, Some(0)),
    ];
    assert_eq!(bytes_asked(step, &mut cpu, &ram), (asked.to_vec(), Step::Done(2)));
    assert_eq!((cpu.registers[6], cpu.registers[7]), (DEVICE + 0x1001, DEVICE + 0x3001));
}

#[test]
fn what_is_read_first_must_be_writable_before_the_device_is_asked() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits32), ram());
    // or [ebx], eax
    let or = &[0x09, 0x03];
    cpu.registers[3] = 0x3010;
    paged(&mut cpu, &ram, &[(3, DEVICE | 1)]);
    let fault = PageFault { address: 0x3010, code: 3 };
    assert_eq!(first_step(or, DEVICE + 0x10, false, &mut cpu, &ram), Step::Raise(Raise::PageFault(fault)));
    assert!(matches!(first_step(or, DEVICE + 0x10, true, &mut cpu, &ram), Step::Ask(..)));
    paged(&mut cpu, &ram, &[(3, DEVICE | 3)]);
    assert!(matches!(first_step(or, DEVICE + 0x10, false, &mut cpu, &ram), Step::Ask(..)));
    assert_eq!(first_step(or, DEVICE + 0x1010, false, &mut cpu, &ram), Step::Retry, "tables changed");
}

#[test]
fn a_string_that_cannot_be_stored_asks_no_device() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits32), ram());
    (cpu.registers[6], cpu.registers[7]) = (0x3010, 0x4000);
    paged(&mut cpu, &ram, &[(3, DEVICE | 3), (4, RAM + 0x3000 + 1)]);
    cpu.user = false;
    // movsd
    let step = first_step(&[0xa5], DEVICE + 0x10, false, &mut cpu, &ram);
    assert_eq!(step, Step::Raise(Raise::PageFault(PageFault { address: 0x4000, code: 3 })));
    assert_eq!(cpu.registers[6], 0x3010);
}

#[test]
fn an_element_in_ram_may_lie_in_two_pages() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits32), ram());
    (cpu.registers[6], cpu.registers[7]) = (0x3ffe, 0x5010);
    paged(&mut cpu, &ram, &[(3, RAM + 0x3000 + 3), (4, RAM + 0x2000 + 3), (5, DEVICE | 3)]);
    ram.write(Gpa(RAM + 0x3ffe), &[1, 2]).unwrap();
    ram.write(Gpa(RAM + 0x2000), &[3, 4]).unwrap();
    let step = first_step(&[0xa5], DEVICE + 0x10, true, &mut cpu, &ram);
    let Step::Ask(Place::Memory(Gpa(0x9010)), Access::Write(Width::Word, 0x0403_0201), plan) = step else {
        panic!("{step:?}");
    };
    assert_eq!(plan.answer(0, &mut cpu, &ram), Step::Done(1));
    assert_eq!((cpu.registers[6], cpu.registers[7]), (0x4002, 0x5014));
}

#[test]
fn ins_and_outs_move_between_a_port_and_ram() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits16), ram());
    // rep insw: ES:DI, CX
    cpu.registers[7] = 0xffff_0000 | RAM;
    cpu.registers[1] = 0xabcd_0002;
    let insw = insn::decode(&[0xf3, 0x6d], CodeSize::Bits16).unwrap();
    for (value, done) in [(0x2211, 0), (0x4433, 2)] {
        let Step::Ask(Place::Port(0x1f0), Access::Read(Width::Half), plan) =
            begin_string_port(&insw, 0x1f0, &mut cpu, &ram)
        else {
            panic!("no read");
        };
        assert_eq!(plan.answer(value, &mut cpu, &ram), Step::Done(done));
    }
    assert_eq!((cpu.registers[1], cpu.registers[7]), (0xabcd_0000, 0xffff_2004));
    assert_eq!(ram.0.borrow()[0x200..0x204], [0x11, 0x22, 0x33, 0x44], "ES has base 0x200");
    assert_eq!(begin_string_port(&insw, 0x1f0, &mut cpu, &ram), Step::Done(2), "CX is 0");
    // fs outsb, downwards
    cpu.rflags |= 0x400;
    cpu.registers[6] = RAM + 0x203 - 0x500;
    let outsb = insn::decode(&[0x64, 0x6e], CodeSize::Bits16).unwrap();
    let step = begin_string_port(&outsb, 0x3f8, &mut cpu, &ram);
    let Step::Ask(Place::Port(0x3f8), Access::Write(Width::Byte, 0x44), plan) = step else {
        panic!("{step:?}");
    };
    assert_eq!(plan.answer(0, &mut cpu, &ram), Step::Done(2));
    assert_eq!(cpu.registers[6], RAM + 0x202 - 0x500);
    assert_eq!(
        begin_string_port(&insn::decode(&[0x90], CodeSize::Bits16).unwrap(), 1, &mut cpu, &ram),
        Step::Retry
    );
}

/// Code, AL and RCX before; how far RDI came, RCX and ZF after.
type Comparison = (&'static [u8], u64, u64, (u64, u64, bool));

#[test]
fn a_comparison_repeats_as_long_as_its_prefix_says() {
    let mut device = std::vec![0xff; WINDOW];
    device[3] = 7;
    let ram = ram();
    ram.write(Gpa(RAM), &[0xff; 8]).unwrap();
    let cases: [Comparison; 7] = [
        (&[0xf3, 0xae], 0xff, 8, (4, 4, false)),
        (&[0xf2, 0xae], 0x07, 8, (4, 4, true)),
        (&[0xf2, 0xae], 0x00, 3, (3, 0, false)),
        (&[0xf3, 0xae], 0x00, 0, (0, 0, true)),
        (&[0xae], 0xff, 8, (1, 8, true)),
        (&[0xf3, 0xa6], 0, 8, (4, 4, false)),
        (&[0xf3, 0xa6], 0, 3, (3, 0, true)),
    ];
    for (code, al, count, expected) in cases {
        let mut cpu = Cpu::new(CodeSize::Bits64);
        cpu.rflags = 2 | alu::ZF;
        (cpu.registers[0], cpu.registers[1]) = (al, count);
        (cpu.registers[6], cpu.registers[7]) = (RAM, DEVICE);
        carry_out(code, Refused { at: Gpa(DEVICE), write: false }, &mut cpu, &ram, &mut device);
        let is_compare = code.ends_with(&[0xa6]);
        assert_eq!(cpu.registers[6], RAM + if is_compare { expected.0 } else { 0 });
        let found = (cpu.registers[7] - DEVICE, cpu.registers[1], cpu.rflags & alu::ZF != 0);
        assert_eq!(found, expected, "{code:02x?} AL {al:#x} RCX {count}");
    }
}

#[test]
fn segments_are_checked_where_the_cpu_has_not() {
    let ram = ram();
    let mut cpu = Cpu::new(CodeSize::Bits32);
    let store = |cpu: &mut Cpu, to: u64| {
        (cpu.registers[6], cpu.registers[7]) = (DEVICE, to);
        first_step(&[0xa5], DEVICE, false, cpu, &ram)
    };
    let es = SegmentName::Es as usize;
    cpu.segments[es].limit = 0x3003;
    assert!(matches!(store(&mut cpu, 0x3000), Step::Ask(..)));
    assert_eq!(store(&mut cpu, 0x3001), Step::Raise(Raise::GeneralProtection), "over the limit");
    cpu.segments[es].attributes = 0x97;
    assert_eq!(store(&mut cpu, 0x3000), Step::Raise(Raise::GeneralProtection), "below an expand-down limit");
    assert!(matches!(store(&mut cpu, 0x3004), Step::Ask(..)));
    for (attributes, why) in [(0x91, "read-only"), (0x9b, "code"), (0x13, "absent")] {
        cpu.segments[es] = Segment { attributes, limit: u32::MAX, ..Segment::default() };
        assert_eq!(store(&mut cpu, 0x3000), Step::Raise(Raise::GeneralProtection), "{why}");
    }
    // ss outsb
    cpu.segments[SegmentName::Ss as usize].limit = 0x2000;
    cpu.registers[6] = 0x2001;
    let outsb = insn::decode(&[0x36, 0x6e], CodeSize::Bits32).unwrap();
    let step = begin_string_port(&outsb, 1, &mut cpu, &ram);
    assert_eq!(step, Step::Raise(Raise::StackFault));
    let mut long = Cpu::new(CodeSize::Bits64);
    assert_eq!(store(&mut long, 0x7fff_ffff_fffd), Step::Raise(Raise::GeneralProtection), "not canonical");
    assert_eq!(store(&mut long, 0x8000_0000_0000), Step::Raise(Raise::GeneralProtection));
}

#[test]
fn what_is_not_made_for_devices_is_refused() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits64), ram());
    // push [rbx]; movaps xmm0, [rbx]; call [rbx]; fld [rbx]
    for code in [&[0xff, 0x33][..], &[0x0f, 0x28, 0x03], &[0xff, 0x13], &[0xd9, 0x03]] {
        assert_eq!(first_step(code, DEVICE, false, &mut cpu, &ram), Step::Refuse(Refusal::Instruction));
    }
    assert_eq!(insn::decode(&[0xc5, 0xf8, 0x28, 0x03], CodeSize::Bits64), Err(DecodeError::Invalid), "AVX");
}

#[test]
fn the_instruction_is_fetched_through_the_code_segment() {
    let (mut cpu, ram) = (Cpu::new(CodeSize::Bits16), ram());
    cpu.segments[SegmentName::Cs as usize].base = 0x800;
    assert_eq!(current(&cpu, &ram), Err(Step::Refuse(Refusal::Instruction)), "code in a device");
    let mut cpu = Cpu::new(CodeSize::Bits32);
    paged(&mut cpu, &ram, &[(1, RAM + 0x2000 + 1)]);
    ram.write(Gpa(RAM + 0x2000), &[0x8b, 0x03]).unwrap();
    assert_eq!(current(&cpu, &ram), insn::decode(&[0x8b, 0x03], CodeSize::Bits32).map_err(|_| Step::Retry));
    paged(&mut cpu, &ram, &[(1, 0)]);
    assert_eq!(current(&cpu, &ram), Err(Step::Retry), "the page went away");
    ram.write(Gpa(RAM), &0xf000_0003_u32.to_le_bytes()).unwrap();
    let outside = Refusal::TableOutsideRam(Gpa(0xf000_0004));
    assert_eq!(current(&cpu, &ram), Err(Step::Refuse(outside)));
}
