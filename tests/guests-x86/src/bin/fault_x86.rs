//! Commits one crime, named on the command line by `crime=NAME`, without vectors that could recover.
//!
//! On a bare machine most of them would hang or reset it: there the program says so and powers off.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "crimes")]

use core::arch::{asm, global_asm};

use bulkhead_test_guests_x86::exception;
use bulkhead_test_guests_x86::tables::{self, Table};
use bulkhead_test_guests_x86::{apic, cpu, machine, port, power_off, println, smp};

bulkhead_test_guests_x86::program!(main, exception::unexpected_interrupt, use_ioapic);

/// Nothing is there, on any machine that this program knows.
const NOWHERE: u64 = 0xd800_0000;

type Crime = (&'static str, fn());

/// The hypervisor's service that makes it fail: only who has the privilege gets it.
const PROVOKE_PANIC: u64 = 0xdead;
/// The IOAPIC's registers.
const IOAPIC: usize = 0xfec0_0000;

const CRIMES: [Crime; 16] = [
    ("triple-fault", triple_fault),
    ("alignment-loop", alignment_loop),
    ("debug-loop", debug_loop),
    ("wild-jump", || jump(NOWHERE)),
    ("fetch-from-device", || jump(apic::PAGE)),
    ("page-tables-in-device", || tables_at(apic::PAGE)),
    ("page-tables-nowhere", || tables_at(NOWHERE)),
    ("undecodable", || {
        // SAFETY: a store of a kind that no driver uses for devices.
        unsafe { asm!("movups [{}], xmm0", in(reg) apic::PAGE, options(nostack)) };
    }),
    ("undecodable-nowhere", || {
        // SAFETY: as above.
        unsafe { asm!("fxsave [{}]", in(reg) NOWHERE, options(nostack)) };
    }),
    ("keyboard-reset", || port::write8(0x64, 0xfe)),
    ("power-off", || power_off()),
    ("cpu-off-last", || smp::halt_for_good()),
    ("panic", || panic(0)),
    ("panic-locked", || {
        smp::start(1);
        panic(1);
    }),
    ("panic-stack", || panic(2)),
    ("panic-consoles", || panic(3)),
];

fn panic(how: u64) {
    // SAFETY: a call that returns, at worst; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg rbx, {how}", "vmmcall", "xchg rbx, {how}",
            how = inout(reg) how => _, inout("rax") PROVOKE_PANIC => _, options(nostack),
        );
    }
}

/// The second CPU needs the lock of the interrupt controllers for ever.
fn use_ioapic(_cpu: usize) {
    loop {
        // SAFETY: a register that reading does not change.
        unsafe { core::ptr::read_volatile(core::ptr::with_exposed_provenance::<u32>(IOAPIC)) };
    }
}

fn main() {
    let name = machine::argument("crime").unwrap_or("none");
    println!("crime: {name}");
    let Some((_, commit)) = CRIMES.iter().find(|(known, _)| *known == name) else {
        println!("# crime=NAME, one of:");
        CRIMES.iter().for_each(|(known, _)| println!("#   {known}"));
        return;
    };
    if !machine::is_hypervised() && name != "power-off" {
        println!("# natively: not committed");
        return;
    }
    commit();
    println!("# survived: {name}");
}

/// No vector at all: the first exception cannot be delivered, nor can the one about that.
fn triple_fault() {
    exception::load_vectors_at(0, 0);
    // SAFETY: undefined, which is the crime.
    unsafe { asm!("ud2", options(nostack)) };
}

fn jump(place: u64) {
    triple_faults_from_here();
    // SAFETY: there is no code; that is the crime.
    unsafe { asm!("jmp {}", in(reg) place, options(nostack)) };
}

/// What goes wrong from here on finds no vector.
fn triple_faults_from_here() {
    exception::load_vectors_at(0, 0);
}

/// The walk itself then leads to where no memory is.
fn tables_at(place: u64) {
    triple_faults_from_here();
    let _ = cpu::set_cr3(place);
}

// Ring 3 in 32-bit mode without paging, alignment checks on, the stack not aligned, and a handler in the same ring: the
// delivery of the check raises the check.
global_asm!(
    ".global into_ring_3",
    "into_ring_3:",
    "push {code32}",
    "lea rax, [rip + crime_in_32]",
    "push rax",
    "retfq",
    ".code32",
    "crime_in_32:",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "or eax, 0x40000",
    "mov cr0, eax",
    "lidt [edi]",
    "mov eax, 0x3b",
    "mov ds, eax",
    "push 0x3b",
    "lea eax, [esp - 0x101]",
    "push eax",
    "push 0x40002",
    "push 0x33",
    "mov eax, offset crime_in_ring_3",
    "push eax",
    "iretd",
    "crime_in_ring_3:",
    "mov eax, [esp]",
    "jmp crime_in_ring_3",
    ".code64",
    code32 = const tables::CODE32,
);

unsafe extern "C" {
    fn into_ring_3() -> !;
    fn crime_in_ring_3();
}

static GATES: Table<[u64; 64]> = Table::new([0; 64]);

fn set_gate(word: usize, value: u64) {
    let table: *mut u64 = GATES.get().cast();
    // SAFETY: the word is taken below the length of the table.
    let place = unsafe { table.add(word % 64) };
    // SAFETY: nothing uses the table yet.
    unsafe { place.write_volatile(value) };
}

/// The delivery of an alignment check raises another, for ever (CVE-2015-5307).
fn alignment_loop() {
    // Flat code and data of ring 3.
    tables::set(6, 0x00cf_fb00_0000_ffff);
    tables::set(7, 0x00cf_f300_0000_ffff);
    let entry = crime_in_ring_3 as *const () as u64;
    let gate = entry & 0xffff | 0x33 << 16 | 0xee00 << 32 | (entry & 0xffff_0000) << 32;
    set_gate(17, gate);
    let mut pointer = [0_u8; 6];
    pointer[..2].copy_from_slice(&0xff_u16.to_le_bytes());
    pointer[2..].copy_from_slice(&GATES.address().to_le_bytes()[..4]);
    // SAFETY: never comes back.
    unsafe {
        asm!("jmp {e}", e = in(reg) into_ring_3 as *const (), in("rdi") &raw const pointer, options(noreturn));
    }
}

// A store that hits a watched word, again and again; the handler returns to it.
global_asm!(".global watched_handler", "watched_handler: iretq");

unsafe extern "C" {
    fn watched_handler();
}

static STACK: Table<[u64; 512]> = Table::new([0; 512]);

/// A breakpoint on the stack that the delivery of a debug exception is pushed to raises another, for ever (CVE-2015-8104).
fn debug_loop() {
    let top = STACK.address() + 4096;
    tables::set_interrupt_stack(top);
    let entry = watched_handler as *const () as u64;
    // The first interrupt stack.
    let gate = entry & 0xffff | u64::from(tables::CODE64) << 16 | 0x8e01 << 32 | (entry & 0xffff_0000) << 32;
    set_gate(2, gate);
    set_gate(3, entry >> 32);
    exception::load_vectors_at(GATES.address(), 0x1ff);
    let watched = top - 8;
    let _ = cpu::set_dr0(watched);
    // Breakpoint 0: on, on writes, eight bytes (SDM Vol. 3B, 18.2.4).
    let _ = cpu::set_dr7(0x0009_0402);
    // SAFETY: the store hits the breakpoint, the pushes of its delivery do so too.
    unsafe { asm!("77: mov qword ptr [{w}], 0", "jmp 77b", w = in(reg) watched, options(noreturn)) };
}
