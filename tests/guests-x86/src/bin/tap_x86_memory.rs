//! Memory as the second stage shows it: RAM to its borders, ones where nothing is, and a device register reached by every
//! form of instruction: each does to the register what it does to RAM.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "loads and stores of forms that Rust has no words for")]

use core::arch::asm;

use bulkhead_test_guests_x86::apic::{self, Mode, register};
use bulkhead_test_guests_x86::tables::Table;
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{acpi, irq, machine, println};

bulkhead_test_guests_x86::program!(main);

/// Between RAM and devices, on any machine with less than 3 GiB.
const HOLE: u64 = 0xd800_0000;
/// Arithmetic flags: carry, parity, adjust, zero, sign, overflow.
const FLAGS: u64 = 0x8d5;

fn main() {
    let mut tap = Tap::start("tap-x86-memory");
    println!("# RAM ends at {:#x}", machine::ram_end());
    irq::start_pics(0x20, 0);
    tap.check("the APIC answers by memory", Mode::Xapic.enter());
    ram(&mut tap);
    forms(&mut tap);
    configuration_space(&mut tap);
    holes(&mut tap);
    tap.finish();
}

fn ram(tap: &mut Tap) {
    let end = machine::ram_end();
    for (name, place) in [
        ("first word of RAM", 8),
        ("last word below the legacy devices", 0x9_7ff8),
        ("first word above 1 MiB that is free", 0x90_0000),
        ("first word of RAM's last page", end - 0x1000),
        ("last word of RAM", end - 8),
    ] {
        tap.check(name, keeps(place));
    }
}

/// Whether RAM at `place` keeps two patterns; what was there is put back.
fn keeps(place: u64) -> bool {
    let word: *mut u64 = core::ptr::with_exposed_provenance_mut(usize::try_from(place).unwrap_or(0));
    // SAFETY: mapped, and nothing of the program lies there.
    let saved = unsafe { word.read_volatile() };
    let kept = [0x5aa5_0ff0_1234_89ab, !0x5aa5_0ff0_1234_89ab_u64].iter().all(|&pattern| {
        // SAFETY: as above; the saved value comes back.
        unsafe { word.write_volatile(pattern) };
        // SAFETY: as above.
        unsafe { word.read_volatile() == pattern }
    });
    // SAFETY: as above.
    unsafe { word.write_volatile(saved) };
    kept
}

/// What an instruction left: memory, RAX, RCX, flags.
type Outcome = (u32, u64, u64, u64);
type Form = (&'static str, fn(u64) -> (u64, u64, u64));

static WORD: Table<[u32; 1024]> = Table::new([0; 1024]);
static OTHER: Table<[u32; 1024]> = Table::new([0; 1024]);

/// A register of which the highest byte can be written: the destination of the APIC's command.
const TARGET: u64 = apic::PAGE + register::ICR_HIGH as u64;
const WRITABLE: u32 = 0xff00_0000;

/// An instruction on the word at R8. Before it RAX is 0x5a00_0000, RCX 0x2700_0000, and of the flags only the carry is set; RSI is the word's
/// address too, RDI that of another word in RAM.
macro_rules! form {
    ($name:literal, $($text:literal),+) => {
        ($name, |place| {
            let (rax, rcx, flags): (u64, u64, u64);
            // SAFETY: the instruction touches the word and its partner, whose addresses it is given.
            unsafe {
                asm!("push 3", "popfq", $($text,)+ "pushfq", "pop r10",
                    in("r8") place, inout("rsi") place => _, inout("rdi") OTHER.address() => _,
                    inout("rax") 0x5a00_0000_u64 => rax, inout("rcx") 0x2700_0000_u64 => rcx, out("rdx") _, out("r10") flags);
            }
            (rax, rcx, flags & FLAGS)
        })
    };
}

const FORMS: [Form; 51] = [
    form!("mov to register", "mov eax, [r8]"),
    form!("mov to register, indexed", "mov edx, 4", "mov eax, [r8 + rdx * 8 - 32]"),
    form!("mov from register", "mov [r8], ecx"),
    form!("mov immediate", "mov dword ptr [r8], 0x33000000"),
    form!("mov from extended register", "mov r10d, ecx", "mov [r8], r10d"),
    form!("add register", "add [r8], eax"),
    form!("add immediate", "add dword ptr [r8], 0x11000000"),
    form!("add to register", "add eax, [r8]"),
    form!("adc register", "adc [r8], eax"),
    form!("adc to register", "adc eax, [r8]"),
    form!("sub register", "sub [r8], eax"),
    form!("sub from register", "sub eax, [r8]"),
    form!("sbb register", "sbb [r8], eax"),
    form!("and register", "and [r8], eax"),
    form!("and immediate", "and dword ptr [r8], 0x0f000000"),
    form!("and to register", "and eax, [r8]"),
    form!("or register", "or [r8], eax"),
    form!("or immediate", "or dword ptr [r8], 0x01000000"),
    form!("or to register", "or eax, [r8]"),
    form!("xor register", "xor [r8], eax"),
    form!("xor to register", "xor eax, [r8]"),
    form!("cmp register", "cmp [r8], eax"),
    form!("cmp with register", "cmp eax, [r8]"),
    form!("cmp immediate", "cmp dword ptr [r8], 0x41000000"),
    form!("test register", "test [r8], eax"),
    form!("test immediate", "test dword ptr [r8], 0x40000000"),
    form!("inc", "inc dword ptr [r8]"),
    form!("dec", "dec dword ptr [r8]"),
    form!("not", "not dword ptr [r8]"),
    form!("neg", "neg dword ptr [r8]"),
    form!("xchg", "xchg [r8], eax"),
    form!("lock or", "lock or [r8], eax"),
    form!("lock add", "lock add [r8], eax"),
    form!("cmpxchg, equal", "mov eax, 0x41000000", "cmpxchg [r8], ecx"),
    form!("cmpxchg, not equal", "cmpxchg [r8], ecx"),
    form!("lock cmpxchg", "mov eax, 0x41000000", "lock cmpxchg [r8], ecx"),
    form!("xadd", "xadd [r8], eax"),
    form!("bt immediate", "bt dword ptr [r8], 30"),
    form!("bts immediate", "bts dword ptr [r8], 29"),
    form!("btr immediate", "btr dword ptr [r8], 30"),
    form!("btc immediate", "btc dword ptr [r8], 24"),
    form!("bt register", "mov edx, 30", "bt [r8], edx"),
    form!("bts register", "mov edx, 27", "bts [r8], edx"),
    form!("movsxd", "movsxd rax, dword ptr [r8]"),
    form!("movs from", "movsd"),
    form!("movs to", "xchg rsi, rdi", "movsd"),
    form!("stos", "mov rdi, r8", "stosd"),
    form!("lods", "lodsd"),
    form!("cmps with", "cmpsd"),
    form!("cmps of", "xchg rsi, rdi", "cmpsd"),
    form!("scas", "mov rdi, r8", "scasd"),
];

fn run(form: &Form, place: u64, keep: u32) -> Outcome {
    write(place, 0x4100_0000);
    write(OTHER.address(), 0x6300_0000);
    let (rax, rcx, flags) = (form.1)(place);
    (read(place) & keep, rax, rcx, flags)
}

fn read(place: u64) -> u32 {
    let value;
    // SAFETY: RAM of the program, or the register under test.
    unsafe { asm!("mov {v:e}, [{a}]", v = out(reg) value, a = in(reg) place, options(nostack)) };
    value
}

fn write(place: u64, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("mov [{a}], {v:e}", v = in(reg) value, a = in(reg) place, options(nostack)) };
}

fn forms(tap: &mut Tap) {
    for form in &FORMS {
        let wanted = run(form, WORD.address(), WRITABLE);
        let partner = read(OTHER.address());
        let found = run(form, TARGET, WRITABLE);
        tap.equal(form.0, (found, read(OTHER.address())), (wanted, partner));
    }
}

/// What one or two instructions load from an address.
macro_rules! load {
    ($($text:literal),+; $place:expr) => {{
        let value: u64;
        // SAFETY: a load from where nothing has an effect.
        unsafe { asm!($($text,)+ v = out(reg_abcd) value, a = in(reg) $place, options(nostack)) };
        value
    }};
}

/// What it is called, how it is loaded, what it must be.
type Piece = (&'static str, fn(u64) -> u64, u64);

/// PCI's configuration space by memory can be read in pieces of any width.
fn configuration_space(tap: &mut Tap) {
    let Some(table) = acpi::table(b"MCFG") else {
        tap.skip("configuration space by memory", "ACPI names none");
        return;
    };
    let base = u64::from(read(table.address + 44));
    let whole = read(base);
    tap.check("a host bridge answers", whole != u32::MAX && whole != 0);
    let [a, b, c, d] = whole.to_le_bytes().map(u64::from);
    let pieces: [Piece; 8] = [
        ("movzx of a byte", |place| load!("movzx {v:e}, byte ptr [{a}]"; place), a),
        ("movzx of another byte", |place| load!("movzx {v:e}, byte ptr [{a} + 3]"; place), d),
        ("movzx of a half", |place| load!("movzx {v:e}, word ptr [{a}]"; place), a | b << 8),
        ("movzx of another half", |place| load!("movzx {v:e}, word ptr [{a} + 2]"; place), c | d << 8),
        ("movsx of a byte", |place| load!("movsx {v}, byte ptr [{a} + 1]"; place), sign(b, 8)),
        ("movsx of a half", |place| load!("movsx {v}, word ptr [{a}]"; place), sign(a | b << 8, 16)),
        ("mov of a byte keeps the rest", |place| load!("mov {v}, -1", "mov {v:l}, [{a}]"; place), !0xff | a),
        (
            "mov of a half keeps the rest",
            |place| load!("mov {v}, -1", "mov {v:x}, [{a}]"; place),
            !0xffff | a | b << 8,
        ),
    ];
    for (name, piece, wanted) in pieces {
        tap.equal(name, piece(base), wanted);
    }
}

/// A value of so many bits, widened with its sign.
fn sign(value: u64, bits: u32) -> u64 {
    (value << (64 - bits)).cast_signed().wrapping_shr(64 - bits).cast_unsigned()
}

fn holes(tap: &mut Tap) {
    if !machine::is_hypervised() {
        tap.skip("what is not there", "each machine has its own idea");
        return;
    }
    let far = machine::ram_end().max(1 << 30) + (1 << 20);
    for (name, place) in [("between RAM and devices", HOLE), ("above RAM", far)] {
        println!("# {name}: {place:#x}");
        tap.equal("8 bytes are ones", load!("mov {v}, [{a}]"; place), u64::MAX);
        tap.equal("4 bytes are ones", load!("mov {v:e}, [{a}]"; place), 0xffff_ffff);
        tap.equal("2 bytes are ones", load!("movzx {v:e}, word ptr [{a}]"; place), 0xffff);
        tap.equal("1 byte is ones", load!("movzx {v:e}, byte ptr [{a}]"; place), 0xff);
        tap.equal("1 byte widened with its sign", load!("movsx {v}, byte ptr [{a}]"; place), u64::MAX);
        tap.equal("an odd address is ones", load!("mov {v:e}, [{a} + 3]"; place), 0xffff_ffff);
        write(place, 0);
        tap.equal("a store is dropped", load!("mov {v:e}, [{a}]"; place), 0xffff_ffff);
        strings(tap, place);
    }
}

fn strings(tap: &mut Tap, hole: u64) {
    write(OTHER.address(), 0);
    write(OTHER.address() + 4 * 63, 0);
    let (source, target, left): (u64, u64, u64);
    // SAFETY: stores into nothing, then copies 64 words of it over the program's own page.
    unsafe {
        asm!("cld", "mov ecx, 64", "rep stosd", "mov ecx, 64", "mov rdi, r8", "rep movsd",
            inout("rdi") hole => target, inout("rsi") hole => source, in("r8") OTHER.address(), out("rcx") left,
            in("eax") 0, options(nostack));
    }
    tap.equal(
        "a repeated string goes to its end",
        (source - hole, target - OTHER.address(), left),
        (256, 256, 0),
    );
    tap.equal(
        "and moves ones",
        (read(OTHER.address()), read(OTHER.address() + 4 * 63)),
        (u32::MAX, u32::MAX),
    );
    let (equal, unequal, left): (u8, u8, u64);
    // SAFETY: compares nothing with the ones just copied, then with zero.
    unsafe {
        asm!("mov ecx, 64", "repe cmpsd", "sete {equal}", "mov ecx, 64", "mov rdi, r8", "repne scasb", "setne {unequal}",
            equal = out(reg_byte) equal, unequal = out(reg_byte) unequal, inout("rsi") hole => _,
            inout("rdi") OTHER.address() => _, in("r8") hole, out("rcx") left, in("eax") 0, options(nostack));
    }
    tap.equal("comparisons find ones to the end", (equal, unequal, left), (1, 1, 0));
}
