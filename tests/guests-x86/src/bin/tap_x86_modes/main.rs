//! Modes of the processor: real, protected, compatibility, long; what each promises about segments, tasks and code that
//! changes itself.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "leaves long mode and runs code that it wrote itself")]

use bulkhead_test_guests_x86::exception::{self, GP, NP, PF};
use bulkhead_test_guests_x86::tables::{self, Table};
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{apic, attempt, cpu, entry_state, machine, println, smp};

mod below;

bulkhead_test_guests_x86::program!(main);

fn main() {
    let mut tap = Tap::start("tap-x86-modes");
    entry(&mut tap);
    long_mode(&mut tap);
    pages(&mut tap);
    changed_code(&mut tap);
    debug(&mut tap);
    legacy(&mut tap);
    tap.equal("every CPU starts in real mode and arrives in long mode", smp::start_all(), machine::cpus());
    tap.finish();
}

fn entry(tap: &mut Tap) {
    let entry = entry_state();
    tap.equal("EAX holds the magic number", entry.magic, machine::MULTIBOOT_MAGIC);
    tap.equal("protected mode is on and paging off", entry.cr0 & 0x8000_0001, 1);
    tap.equal("interrupts are masked", entry.flags & 1 << 9, 0);
    println!("# {} CPUs, RAM to {:#x}", machine::cpus(), machine::ram_end());
    tap.check("the loader names RAM", machine::ram_end() > 16 << 20);
}

/// What a long-mode processor refuses (SDM Vol. 3A, 2.5; APM Vol. 2, 3.1).
fn long_mode(tap: &mut Tap) {
    let efer = cpu::read_msr(0xc000_0080);
    tap.equal("EFER has LME, LMA and NXE", efer.map(|value| value & 0xd00), Ok(0xd00));
    let general = |fault: Option<exception::Fault>| fault.map(|fault| (fault.vector, fault.error));
    let refused = Some((GP, 0));
    if machine::is_emulated_amd() {
        tap.skip("what CR4 refuses", "QEMU refuses less");
    } else {
        tap.equal("CR4.PAE cannot be cleared", general(cpu::set_cr4(cpu::cr4() & !(1 << 5))), refused);
        tap.equal("a reserved bit of CR4 is refused", general(cpu::set_cr4(cpu::cr4() | 1 << 31)), refused);
    }
    if machine::is_hypervised() {
        tap.equal(
            "five levels of tables are not offered",
            general(cpu::set_cr4(cpu::cr4() | 1 << 12)),
            refused,
        );
    }
    let global = cpu::cr4() ^ 1 << 7;
    tap.equal("CR4.PGE can be changed", (general(cpu::set_cr4(global)), cpu::cr4()), (None, global));
    tap.equal("and changed back", general(cpu::set_cr4(global ^ 1 << 7)), None);
    if machine::is_amd() {
        // SVM leaves most of it to the processor, and QEMU's refuses nothing: it would lose its ground.
        tap.skip("what control registers refuse", "asked on Intel's processors");
    } else {
        tap.equal("paging without protection is refused", general(cpu::set_cr0(0x8000_0010)), refused);
        tap.equal("NW without CD is refused", general(cpu::set_cr0(cpu::cr0() | 1 << 29)), refused);
        tap.equal("the high half of CR0 is refused", general(cpu::set_cr0(cpu::cr0() | 1 << 40)), refused);
        tap.equal("CR3 beyond the physical addresses is refused", general(cpu::set_cr3(1 << 60)), refused);
        tap.equal("CR8 has four bits", general(cpu::set_cr8(0x10)), refused);
        tap.equal("LME cannot change under paging", general(cpu::write_msr(0xc000_0080, 0xc00)), refused);
    }
    tap.equal("CR0 is as it was", cpu::cr0() & 0x8001_0023, 0x8001_0023 & cpu::cr0());
    let none = None;
    tap.equal("CR8 can be written", (general(cpu::set_cr8(5)), cpu::cr8()), (none, 5));
    tap.equal("and written back", (general(cpu::set_cr8(0)), cpu::cr8()), (none, 0));
    tap.equal("CR0.TS can be set", (general(cpu::set_cr0(cpu::cr0() | 8)), cpu::cr0() & 8), (none, 8));
    tap.equal("and cleared", (general(cpu::set_cr0(cpu::cr0() & !8)), cpu::cr0() & 8), (none, 0));
    // SAFETY: no address there is canonical.
    let fault =
        unsafe { attempt!("mov rax, [{a}]"; a = in(reg) 1_u64 << 63 >> 8, out("rax") _, options(nostack)) };
    tap.equal("an address that is not canonical is refused", fault.map(|fault| fault.vector), Some(GP));
    // SAFETY: UD2 has one effect.
    let fault = unsafe { attempt!("ud2"; options(nostack)) };
    tap.equal("UD2 is undefined", fault.map(|fault| fault.vector), Some(exception::UD));
    // SAFETY: divides by zero, on purpose.
    let fault = unsafe {
        attempt!("div {z:e}"; z = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _, options(nostack))
    };
    tap.equal("a division by zero is one", fault.map(|fault| fault.vector), Some(exception::DE));
}

/// A spare page whose mapping is changed.
static SPARE: Table<[u64; 512]> = Table::new([0; 512]);
static SPARE_TABLE: Table<[u64; 512]> = Table::new([0; 512]);
/// Where it is mapped: beyond the 8 GiB of the library's map.
const WINDOW: u64 = 8 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// The guest's own page tables: protection, error codes, and that INVLPG and CR3 writes are heeded.
fn pages(tap: &mut Tap) {
    let root: *mut u64 = tables::MAP.get().cast();
    // SAFETY: the second table of the map holds entries for 1 GiB each; the ninth is free.
    let entry = unsafe { root.add(512 + 8) };
    // SAFETY: as above.
    unsafe { entry.write_volatile(SPARE_TABLE.address() | PRESENT | WRITABLE) };
    let leaf: *mut u64 = SPARE_TABLE.get().cast();
    let frame = SPARE.address() & !0x1f_ffff | LARGE;
    let inside = WINDOW + (SPARE.address() & 0x1f_ffff);
    let map = |flags: u64| {
        // SAFETY: nothing but these checks uses the window.
        unsafe { leaf.write_volatile(frame | flags) };
        // SAFETY: forgets a translation.
        unsafe { core::arch::asm!("invlpg [{}]", in(reg) inside, options(nostack)) };
    };
    let store = || {
        // SAFETY: the window shows the spare page or nothing.
        unsafe {
            attempt!("mov dword ptr [{a}], {v:e}"; a = in(reg) inside, v = in(reg) 0xc3, options(nostack))
        }
    };
    let run = || {
        // SAFETY: the page holds RET, or cannot be fetched from.
        unsafe { attempt!("call {a}"; a = in(reg) inside) }
    };
    let seen =
        |fault: Option<exception::Fault>| fault.map(|fault| (fault.vector, fault.error, fault.address));
    map(PRESENT | WRITABLE);
    tap.equal("a writable page is written", seen(store()), None);
    map(PRESENT);
    tap.equal("a read-only page is not", seen(store()), Some((PF, 3, inside)));
    map(0);
    tap.equal("a page that is not there is missed", seen(store()), Some((PF, 2, inside)));
    map(PRESENT | NO_EXECUTE);
    // A fetch that faults leaves the return address on the stack: only looked at by the next call.
    let fault = fetch(inside);
    tap.equal("a page that must not run does not", seen(fault), Some((PF, 0x11, inside)));
    map(PRESENT);
    tap.equal("a page that may run does", seen(run()), None);
    map(PRESENT | 1 << 51);
    tap.equal(
        "a reserved bit is told",
        seen(store()).map(|(vector, error, _)| (vector, error & 8)),
        Some((PF, 8)),
    );
    map(0);
}

/// Jumps there; the jump's fault is caught. The stack is not touched.
fn fetch(place: u64) -> Option<exception::Fault> {
    // SAFETY: the place cannot be fetched from.
    unsafe { attempt!("jmp {a}"; a = in(reg) place, options(nostack)) }
}

static CODE: Table<[u8; 8192]> = Table::new([0; 8192]);

/// Stores into code are seen by the next fetch (SDM Vol. 3A, 8.1.3; on the same linear address even without a jump).
fn changed_code(tap: &mut Tap) {
    let code: *mut u8 = CODE.get().cast();
    // `mov eax, imm32; ret`, once inside of a page and once across its end.
    for (name, offset) in [("in a page", 64), ("across pages", 4096 - 3)] {
        let mut wrong = 0;
        for round in 0..1000_u32 {
            let [a, b, c, d] = round.to_le_bytes();
            for (index, byte) in [0xb8, a, b, c, d, 0xc3].into_iter().enumerate() {
                // SAFETY: inside of the table.
                let place = unsafe { code.add(offset + index) };
                // SAFETY: it only runs when it is called below.
                unsafe { place.write_volatile(byte) };
            }
            let result: u32;
            let entry = CODE.address() + offset as u64;
            // SAFETY: the code keeps everything but EAX.
            unsafe { core::arch::asm!("call {e}", e = in(reg) entry, out("eax") result, clobber_abi("C")) };
            wrong += u32::from(result != round);
        }
        println!("# code {name}");
        tap.equal("code that was changed runs as changed", wrong, 0);
    }
    // MOV changes the immediate of the next instruction.
    let ahead: [u8; 17] = [0xc7, 0x05, 1, 0, 0, 0, 0x78, 0x56, 0x34, 0x12, 0xb8, 0, 0, 0, 0, 0xc3, 0x90];
    // SAFETY: it fits into the table.
    unsafe { code.copy_from_nonoverlapping(ahead.as_ptr(), ahead.len()) };
    let value: u32;
    // SAFETY: the code keeps everything but EAX.
    unsafe {
        core::arch::asm!("call {e}", e = in(reg) CODE.address(), out("eax") value, clobber_abi("C"));
    }
    tap.equal("an instruction can change the next one", value, 0x1234_5678);
}

/// Debug exceptions (SDM Vol. 3B, 18.2 and 18.3.1).
fn debug(tap: &mut Tap) {
    let behind: u64;
    // SAFETY: INT1 has one effect.
    let fault = unsafe {
        attempt!("lea {behind}, [rip + 2f]", ".byte 0xf1", "2:"; behind = out(reg) behind, options(nostack))
    };
    let seen = fault.map(|fault| (fault.vector, fault.rip));
    tap.equal("INT1 is a debug exception behind itself", seen, Some((exception::DB, behind)));
    // DR7.GD, with the bit that is always set.
    tap.equal("access to debug registers can be made a fault", cpu::set_dr7(0x2400), None);
    // SAFETY: reads a register.
    let fault = unsafe { attempt!("mov {v}, dr6"; v = out(reg) _, options(nostack)) };
    tap.equal("it is one", fault.map(|fault| fault.vector), Some(exception::DB));
    tap.equal("and the handler has access", cpu::dr7(), 0x400);
}

/// Everything below long mode, in one trip.
fn legacy(tap: &mut Tap) {
    let found = below::visit();
    use below::Slot::*;
    let of = |slot: below::Slot| found[slot as usize];
    tap.equal("compatibility mode is reached", of(Compatibility), 0x32);
    tap.equal("LMA goes with paging", of(Efer) & 0x500, 0x100);
    tap.equal("the last word of a segment can be read", of(InLimit), 0x4d41_5247);
    if machine::is_amd() && of(BeyondLimit) == 0 {
        tap.skip("segment limits", "QEMU's processor looks at none");
    } else {
        tap.equal("the next cannot", of(BeyondLimit), 13 << 16);
        tap.equal("an expand-down segment begins above its limit", of(BelowExpandDown), 13 << 16);
    }
    tap.equal("and can be read there", of(AboveExpandDown), 0x4d41_5247);
    let not_present = u32::try_from(NP).unwrap_or(0) << 16 | 0x40;
    tap.equal("a segment that is not present is told", of(NotPresent), not_present);
    if below::has_tasks() {
        tap.equal("a task switch runs the other task", of(OtherTask), 0x50);
        tap.equal("and the way back continues the first", of(FirstTask), 0x48);
        tap.equal("a task switch sets CR0.TS", of(TaskSwitched) & 8, 8);
    } else {
        tap.skip("a task switch", "VMX leaves it to the hypervisor, which does none");
    }
    tap.equal("32-bit port access", of(Port32), 0xa5);
    tap.equal("real mode is reached", of(RealMode) & 1, 0);
    tap.equal("real mode adds segment times 16", of(RealSegment), 0x4d41_5247);
    tap.equal("a software interrupt goes through the vector table", of(RealInterrupt), 0x40);
    tap.equal("a segment keeps the limit of protected mode", of(BigReal), of(InLimit));
    tap.equal(
        "memory-mapped registers answer in real mode",
        of(RealMmio),
        apic::peek(apic::register::VERSION),
    );
    tap.equal("ports answer in real mode", of(RealPort), 0x5a);
    tap.equal("string ports answer in real mode", of(RealString), 0x3c);
}
