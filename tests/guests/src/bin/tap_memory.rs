//! Memory as stage 2 shows it: RAM to its borders, aborts beyond them, device accesses of every form.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "loads and stores of forms that Rust has no words for")]

use core::arch::asm;

use bulkhead_test_guests::exception::{self, DATA_ABORT, EXTERNAL_ABORT, Fault, INSTRUCTION_ABORT};
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::{console, gic, machine, mmio, println, registers};

bulkhead_test_guests::program!(main);

/// DFSC: alignment (Arm ARM D19.2.40).
const ALIGNMENT: u64 = 0x21;
/// Between the devices that Bulkhead and QEMU have.
const HOLE: usize = 0x0b00_0000;
const FAR_AWAY: usize = 0xf_8000_0000;
/// Integer baud rate divisor: any 16 bits may be kept there, harmlessly.
const UART_DIVISOR: usize = console::UART + 0x24;

fn main() {
    let mut tap = Tap::start("tap-memory");
    let hypervised = machine::is_hypervised();
    println!("# RAM ends at {:#x}", machine::ram_end());
    ram(&mut tap);
    beyond(&mut tap);
    fetches(&mut tap);
    straddling(&mut tap);
    device_widths(&mut tap);
    unaligned(&mut tap);
    undecodable(&mut tap, hypervised);
    tap.finish();
}

fn ram(tap: &mut Tap) {
    let end = machine::ram_end();
    let places = [
        ("first word of RAM", machine::RAM_START),
        ("last word of RAM's first page", machine::RAM_START + 0xff8),
        ("first word of RAM's last page", end - 0x1000),
        ("last word of RAM", end - 8),
    ];
    for (name, place) in places {
        tap.check(name, keeps(place));
    }
    let megabytes = (machine::RAM_START..end).step_by(1 << 20);
    tap.check(
        "a word in each MiB of RAM can be read",
        exception::catch(|| megabytes.for_each(peek)).is_none(),
    );
}

fn peek(place: usize) {
    let from: *const u64 = core::ptr::with_exposed_provenance(place);
    // SAFETY: an aligned load from RAM; its value is not used.
    let _ = unsafe { from.read_volatile() };
}

/// Whether RAM at `place` keeps two patterns; what was there is put back.
fn keeps(place: usize) -> bool {
    let word: *mut u64 = core::ptr::with_exposed_provenance_mut(place);
    // SAFETY: aligned and in RAM; nobody else runs.
    let saved = unsafe { word.read_volatile() };
    let kept = [0x5aa5_0ff0_1234_89ab, !0x5aa5_0ff0_1234_89ab_u64].iter().all(|&pattern| {
        // SAFETY: as above; the saved value comes back before anything else reads it.
        unsafe { word.write_volatile(pattern) };
        // SAFETY: as above.
        unsafe { word.read_volatile() == pattern }
    });
    // SAFETY: as above.
    unsafe { word.write_volatile(saved) };
    kept
}

fn beyond(tap: &mut Tap) {
    let end = machine::ram_end();
    let places = [
        ("just below RAM", machine::RAM_START - 8),
        ("just above RAM", end),
        ("one MiB above RAM", end + (1 << 20)),
        ("a hole between devices", HOLE),
        ("far above RAM", FAR_AWAY),
    ];
    for (name, place) in places {
        println!("# {name}: {place:#x}");
        aborts(tap, "8-byte load aborts", place, false, || ignore(mmio::read64(place)));
        aborts(tap, "4-byte load aborts", place, false, || ignore(mmio::read32(place)));
        aborts(tap, "2-byte load aborts", place, false, || ignore(mmio::read16(place)));
        aborts(tap, "1-byte load aborts", place + 7, false, || ignore(mmio::read8(place + 7)));
        aborts(tap, "8-byte store aborts", place, true, || mmio::write64(place, u64::MAX));
        aborts(tap, "1-byte store aborts", place + 3, true, || mmio::write8(place + 3, 0xff));
    }
}

const fn ignore<T: Copy>(_value: T) {}

fn aborts(tap: &mut Tap, name: &str, place: usize, is_write: bool, operation: impl FnOnce()) {
    let found = exception::catch(operation).map(describe);
    tap.equal(name, found, Some((DATA_ABORT, EXTERNAL_ABORT, is_write, place as u64)));
}

const fn describe(fault: Fault) -> (u64, u64, bool, u64) {
    (fault.class(), fault.status(), fault.is_write(), fault.far)
}

fn fetches(tap: &mut Tap) {
    for place in [machine::ram_end(), machine::ram_end() + (1 << 20), FAR_AWAY] {
        // SAFETY: nothing is there to run.
        let fault = exception::catch(|| unsafe { exception::call(place) });
        let found = fault.map(|fault| (fault.class(), fault.status(), fault.far, fault.elr));
        let wanted = (INSTRUCTION_ABORT, EXTERNAL_ABORT, place as u64, place as u64);
        tap.equal("a fetch from above RAM aborts", found, Some(wanted));
    }
}

fn straddling(tap: &mut Tap) {
    let end = machine::ram_end();
    let place = end - 4;
    let load = exception::catch(|| {
        // SAFETY: the half that exists is only read.
        unsafe { asm!("ldr {v}, [{a}]", a = in(reg) place, v = out(reg) _, options(nostack)) };
    });
    tap.check("a load across the end of RAM aborts", load.is_some_and(|fault| at_end(fault, end)));
    let store = exception::catch(|| {
        // SAFETY: the last word of RAM belongs to nobody.
        unsafe { asm!("str xzr, [{a}]", a = in(reg) place, options(nostack)) };
    });
    tap.check("a store across the end of RAM aborts", store.is_some_and(|fault| at_end(fault, end)));
    let pair = exception::catch(|| {
        let place = end - 8;
        // SAFETY: the half that exists is only read.
        unsafe {
            asm!("ldp {v}, {w}, [{a}]", a = in(reg) place, v = out(reg) _, w = out(reg) _, options(nostack));
        }
    });
    tap.check("a pair of loads across the end of RAM aborts", pair.is_some_and(|fault| at_end(fault, end)));
}

fn at_end(fault: Fault, end: usize) -> bool {
    let end = end as u64;
    fault.class() == DATA_ABORT && fault.status() == EXTERNAL_ABORT && (end - 8..=end).contains(&fault.far)
}

fn device_widths(tap: &mut Tap) {
    let flags = mmio::read32(console::FLAGS) & 0xff;
    let mut narrow = (0, 0);
    let fault = exception::catch(|| {
        narrow = (mmio::read8(console::FLAGS).into(), mmio::read16(console::FLAGS).into())
    });
    tap.equal("UART flags by 1 and 2 bytes", (fault, narrow), (None, (flags, flags)));
    mmio::write16(UART_DIVISOR, 0x1234);
    tap.equal("UART divisor by 2 bytes", mmio::read32(UART_DIVISOR), 0x1234);
    mmio::write32(UART_DIVISOR, 0);
    let fault = exception::catch(|| ignore(mmio::read64(console::FLAGS)));
    tap.check("an 8-byte load from the UART ends", fault.is_none_or(is_external));
    let fault = exception::catch(|| mmio::write64(console::UART + 0x20, 0));
    tap.check("an 8-byte store to the UART ends", fault.is_none_or(is_external));
    gic::set_priority(0, 40, 0xa0);
    gic::set_priority(0, 41, 0x40);
    tap.equal("GIC priorities by 1 byte", (gic::priority(0, 40), gic::priority(0, 41)), (0xa0, 0x40));
    let four = mmio::read32(gic::GICD + 0x400 + 40);
    tap.equal("GIC priorities by 4 bytes", four & 0xffff, 0x40a0);
    gic::route(40, 0);
    tap.equal("GIC route by 8 bytes", gic::routed_to(40) & 0xff_00ff_ffff, machine::affinity(0));
    for (name, operation) in [
        ("1-byte load from GICD_TYPER", (|| ignore(mmio::read8(gic::GICD_TYPER))) as fn()),
        ("2-byte load from GICD_TYPER", || ignore(mmio::read16(gic::GICD_TYPER))),
        ("8-byte load from GICD_CTLR", || ignore(mmio::read64(gic::GICD_CTLR))),
        ("8-byte load from GICR_TYPER", || ignore(mmio::read64(gic::GICR + 8))),
        ("4-byte load from a reserved register", || ignore(mmio::read32(gic::GICD + 0x3000))),
        ("4-byte store to a reserved register", || mmio::write32(gic::GICD + 0x3000, u32::MAX)),
        ("4-byte store to a read-only register", || mmio::write32(gic::GICD_TYPER, u32::MAX)),
    ] {
        tap.check(name, exception::catch(operation).is_none_or(is_external));
    }
    tap.equal("GICR_TYPER has the affinity", mmio::read64(gic::GICR + 8) >> 32, aff32(machine::affinity(0)));
}

/// The affinity as GICR_TYPER holds it: Aff3.Aff2.Aff1.Aff0.
const fn aff32(affinity: u64) -> u64 {
    affinity & 0x00ff_ffff | affinity >> 8 & 0xff00_0000
}

fn is_external(fault: Fault) -> bool {
    fault.class() == DATA_ABORT && fault.status() == EXTERNAL_ABORT
}

/// An alignment fault; but an emulator that runs its CPUs in turn may not look, and then the device decides.
fn unaligned(tap: &mut Tap) {
    for place in [console::FLAGS + 1, gic::GICD_TYPER + 2, HOLE + 1] {
        let fault = exception::catch(|| ignore(mmio::read32(place)));
        tap.check("an unaligned load from a device ends", is_misaligned(fault, place));
        let fault = exception::catch(|| mmio::write32(place, 0));
        tap.check("an unaligned store to a device ends", is_misaligned(fault, place));
    }
}

fn is_misaligned(fault: Option<Fault>, place: usize) -> bool {
    let Some(fault) = fault else {
        println!("# {place:#x}: not checked here");
        return true;
    };
    let status = [ALIGNMENT, EXTERNAL_ABORT].contains(&fault.status());
    fault.class() == DATA_ABORT && status && fault.far == place as u64
}

macro_rules! form {
    ($($text:literal),+) => {
        || {
            // SAFETY: moves bytes between registers that nobody uses and the UART's divisor or the GIC's type.
            unsafe {
                asm!(".arch_extension fp", $($text,)+ inout("x9") UART_DIVISOR => _, in("x10") gic::GICD_TYPER - 4,
                    out("x11") _, out("x12") _, options(nostack));
            }
        }
    };
}

/// Forms whose syndrome names no register: a hypervisor that does not decode instructions answers with an abort.
fn undecodable(tap: &mut Tap, hypervised: bool) {
    registers::cpacr_el1::write(3 << 20);
    let forms: [(&str, bool, fn()); 8] = [
        ("load pair", false, form!("ldp w11, w12, [x10]")),
        ("store pair", true, form!("stp wzr, wzr, [x9]")),
        ("load, post-indexed", false, form!("ldr w11, [x9], #4")),
        ("load, pre-indexed", false, form!("ldr w11, [x9, #4]!")),
        ("store, post-indexed", true, form!("str wzr, [x9], #4")),
        ("store, pre-indexed", true, form!("str wzr, [x9, #4]!")),
        ("load into a SIMD register", false, form!("ldr s0, [x10]")),
        ("store from a SIMD register", true, form!("str s0, [x9]")),
    ];
    for (name, is_write, operation) in forms {
        let fault = exception::catch(operation);
        if hypervised {
            let found = fault.map(|fault| (fault.class(), fault.status(), fault.is_write()));
            tap.equal(name, found, Some((DATA_ABORT, EXTERNAL_ABORT, is_write)));
        } else {
            tap.skip(name, "native carries it out");
        }
    }
}
