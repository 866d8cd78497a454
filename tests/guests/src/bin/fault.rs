//! Commits one crime, named on the command line by `crime=NAME`, without vectors that could recover.
//!
//! On QEMU's own machine nobody would notice most of them: there the program says so and powers off.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "crimes")]

use core::arch::asm;

use bulkhead_test_guests::{console, exception, gic, machine, mmio, mmu, println, psci, smp};

bulkhead_test_guests::program!(main, exception::unexpected_interrupt, use_gic);

/// Nothing is there, on any machine that this program knows.
const NOWHERE: usize = 0x0b00_0000;
const FAR_AWAY: usize = 0xf_8000_0000;
/// Vectors at a place that may be fetched from by the program's own tables, and where nothing is either.
const VECTORS_NOWHERE: usize = FAR_AWAY + 0x10_0000;
/// Vectors at a place that the program's own tables do not let it execute: no exception leaves EL1.
const VECTORS_OF_DATA: usize = NOWHERE;

type Crime = (&'static str, fn());

/// The hypervisor's service that makes it fail: only who has the privilege gets it.
const PROVOKE_PANIC: u64 = 0xc600_dead;

const CRIMES: [Crime; 15] = [
    // SAFETY: there is no code; that is the crime.
    ("wild-jump", || unsafe { exception::call(FAR_AWAY) }),
    ("unmapped-read", || println!("read {:#x}", mmio::read32(NOWHERE))),
    ("unmapped-write", || mmio::write32(NOWHERE, 1)),
    ("page-tables", mmu::destroy),
    ("undefined", || {
        // SAFETY: permanently UNDEFINED.
        unsafe { asm!("udf #1", options(nostack)) };
    }),
    ("smc-reset", || {
        psci::smc(psci::SYSTEM_RESET, 0, 0, 0);
    }),
    ("power-off", || psci::system_off()),
    ("device-pair", || {
        // SAFETY: reads registers of the UART, by an instruction of which no CPU tells what it does.
        unsafe { asm!("ldp {}, {}, [{}]", out(reg) _, out(reg) _, in(reg) console::FLAGS, options(nostack)) };
    }),
    ("endless-vector", || {
        set_vectors(VECTORS_OF_DATA);
        // SAFETY: no handler is there; that is the crime.
        unsafe { asm!("svc #0", options(nostack)) };
    }),
    ("el2-instruction", || {
        // SAFETY: UNDEFINED at EL1.
        unsafe { asm!("mrs {}, vttbr_el2", out(reg) _, options(nostack)) };
    }),
    ("cpu-off-last", || smp::switch_off()),
    ("panic", || panic(0)),
    ("panic-locked", || {
        smp::start(1);
        panic(1);
    }),
    ("panic-stack", || panic(2)),
    ("panic-consoles", || panic(3)),
];

fn panic(how: u64) {
    psci::smc(PROVOKE_PANIC, how, 0, 0);
}

/// The second CPU needs the lock of the interrupt controller for ever.
fn use_gic(_cpu: usize) {
    loop {
        let _ = mmio::read32(gic::GICD_TYPER);
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
        println!("# native: not committed");
        return;
    }
    set_vectors(VECTORS_NOWHERE);
    commit();
    println!("# survived: {name}");
}

fn set_vectors(at: usize) {
    // SAFETY: from here on no exception is handled; that is what the program is for.
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) at, options(nostack)) };
}
