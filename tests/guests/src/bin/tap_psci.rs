//! PSCI and SMCCC: versions, features, further CPUs on and off and on, errors, standby, unknown functions.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a call that watches all registers")]

use core::arch::asm;

use bulkhead_test_guests::exception;
use bulkhead_test_guests::psci::{self, ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED};
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::timer::{self, Timer};
use bulkhead_test_guests::{console, gic, machine, println, secondary_entry, smp};

bulkhead_test_guests::program!(main, exception::unexpected_interrupt, stays_a_while);

const ON: i64 = 0;
const OFF: i64 = 1;
/// An affinity that no CPU has.
const NOBODY: u64 = 0x7f;
const CPU_ON_32: u64 = 0x8400_0003;
const AFFINITY_INFO_32: u64 = 0x8400_0004;

/// A further CPU leaves as soon as the first one forgets it.
fn stays_a_while(cpu: usize) {
    while smp::context(cpu) != 0 {
        smp::pause();
    }
}

fn main() {
    let mut tap = Tap::start("tap-psci");
    let hypervised = machine::is_hypervised();
    versions(&mut tap, hypervised);
    features(&mut tap, hypervised);
    unknown(&mut tap, hypervised);
    tap.check("a call keeps x4 to x17 and x19 to x29", registers_survive());
    standby(&mut tap);
    errors(&mut tap, hypervised);
    for cpu in 1..machine::cpus() {
        println!("# CPU {cpu}");
        on_and_off(&mut tap, cpu);
    }
    all_at_once(&mut tap);
    tap.finish();
}

fn versions(tap: &mut Tap, hypervised: bool) {
    let version = psci::call(psci::VERSION, 0, 0, 0);
    tap.check("PSCI_VERSION by HVC is 1.0 or later", version >= 0x1_0000);
    if !hypervised {
        for name in
            ["PSCI_VERSION is 1.1", "PSCI_VERSION by SMC", "SMCCC_VERSION", "SMC with an odd immediate ends"]
        {
            tap.skip(name, "native");
        }
        return;
    }
    tap.equal("PSCI_VERSION is 1.1", version, 0x1_0001);
    tap.equal("PSCI_VERSION by SMC", psci::try_smc(psci::VERSION, 0, 0, 0), Ok(version));
    tap.check("SMCCC_VERSION", psci::call(psci::SMCCC_VERSION, 0, 0, 0) >= 0x1_0001);
    let mut x0 = 0;
    let fault =
        exception::catch(|| x0 = psci::signed(psci::VERSION, psci::smc_odd(psci::VERSION, 0, 0, 0)[0]));
    let defined = match fault {
        Some(fault) => fault.class() == exception::UNDEFINED,
        None => x0 == NOT_SUPPORTED || x0 == version,
    };
    tap.check("SMC with an odd immediate ends", defined);
}

fn features(tap: &mut Tap, hypervised: bool) {
    let feature = |function: u64| psci::call(psci::FEATURES, function, 0, 0);
    for (name, function) in [
        ("FEATURES knows PSCI_VERSION", psci::VERSION),
        ("FEATURES knows CPU_OFF", psci::CPU_OFF),
        ("FEATURES knows CPU_ON", psci::CPU_ON),
        ("FEATURES knows CPU_SUSPEND", psci::CPU_SUSPEND),
        ("FEATURES knows AFFINITY_INFO", psci::AFFINITY_INFO),
        ("FEATURES knows SYSTEM_OFF", psci::SYSTEM_OFF),
        ("FEATURES knows SYSTEM_RESET", psci::SYSTEM_RESET),
        ("FEATURES knows itself", psci::FEATURES),
    ] {
        tap.check(name, feature(function) >= 0);
    }
    tap.equal("FEATURES does not know a function of nobody", feature(0x8400_00ff), NOT_SUPPORTED);
    tap.equal("FEATURES does not know function 0", feature(0), NOT_SUPPORTED);
    if hypervised {
        tap.check("FEATURES knows SMCCC_VERSION", feature(psci::SMCCC_VERSION) >= 0);
    } else {
        tap.skip("FEATURES knows SMCCC_VERSION", "native");
    }
    let migration = psci::call(psci::MIGRATE_INFO_TYPE, 0, 0, 0);
    tap.check("MIGRATE_INFO_TYPE: no trusted OS to move", migration == 2 || migration == NOT_SUPPORTED);
}

fn unknown(tap: &mut Tap, hypervised: bool) {
    for (name, function) in [
        ("an unknown PSCI function", 0x8400_00ff),
        ("an unknown 64-bit PSCI function", 0xc400_00ff),
        ("an unknown owner's function", 0x9f00_1234),
        ("a function with a reserved bit", 0x8401_0000),
        ("a trusted OS's function", 0xb200_0000),
    ] {
        tap.equal(name, psci::call(function, 1, 2, 3), NOT_SUPPORTED);
        if hypervised {
            tap.equal("the same by SMC", psci::try_smc(function, 1, 2, 3), Ok(NOT_SUPPORTED));
        } else {
            tap.skip("the same by SMC", "native");
        }
    }
}

/// SMCCC 1.1 keeps all but x0 to x3.
fn registers_survive() -> bool {
    let changed: u64;
    // SAFETY: a call that changes nothing; every register it touches is named.
    unsafe {
        asm!(
            "stp x19, x29, [sp, #-16]!",
            ".irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,19,20,21,22,23,24,25,26,27,28,29",
            "mov x\\n, #(0x1100 + \\n)",
            ".endr",
            "hvc #0",
            "mov x1, xzr",
            ".irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,19,20,21,22,23,24,25,26,27,28,29",
            "sub x2, x\\n, #\\n",
            "mov x3, #0x1100",
            "eor x2, x2, x3",
            "orr x1, x1, x2",
            ".endr",
            "ldp x19, x29, [sp], #16",
            inout("x0") psci::VERSION => _, out("x1") changed, out("x2") _, out("x3") _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _,
            out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _, out("x25") _, out("x26") _,
            out("x27") _, out("x28") _,
        );
    }
    changed == 0
}

fn standby(tap: &mut Tap) {
    gic::start_distributor();
    gic::start_cpu(0);
    gic::enable(0, timer::VIRTUAL_INTID, 0x80);
    let deadline = timer::now() + timer::ticks(2000);
    Timer::Virtual.arm(deadline);
    let answer = psci::call(psci::CPU_SUSPEND, 0, 0, 0);
    let woken = timer::now();
    Timer::Virtual.stop();
    tap.equal("CPU_SUSPEND to standby succeeds", answer, 0);
    // Standby may end early, like WFI; it must end.
    tap.check("and ends with the timer", woken < deadline + timer::ticks(500_000));
}

fn errors(tap: &mut Tap, hypervised: bool) {
    let entry = secondary_entry();
    let own = machine::affinity(0);
    tap.equal("CPU_ON of oneself", psci::call(psci::CPU_ON, own, entry, 0), ALREADY_ON);
    for (name, affinity) in [
        ("CPU_ON of nobody", NOBODY),
        ("CPU_ON of a CPU in no cluster", 0xff_00ff_ff00),
        ("CPU_ON with reserved bits in the affinity", 1 << 63 | NOBODY),
    ] {
        tap.equal(name, psci::call(psci::CPU_ON, affinity, entry, 0), INVALID_PARAMETERS);
    }
    for (name, nowhere) in [
        ("CPU_ON below RAM", 0x1000),
        ("CPU_ON at a device", console::FLAGS as u64),
        ("CPU_ON behind RAM", machine::ram_end() as u64),
        ("CPU_ON between two instructions", entry + 2),
    ] {
        if hypervised {
            let answer = psci::call(psci::CPU_ON, machine::affinity(1), nowhere, 0);
            tap.equal(name, (answer, state(1)), (INVALID_ADDRESS, OFF));
        } else {
            tap.skip(name, "native");
        }
    }
    tap.equal("AFFINITY_INFO of oneself", psci::call(psci::AFFINITY_INFO, own, 0, 0), ON);
    tap.equal("AFFINITY_INFO of nobody", psci::call(psci::AFFINITY_INFO, NOBODY, 0, 0), INVALID_PARAMETERS);
}

fn state(cpu: usize) -> i64 {
    psci::call(psci::AFFINITY_INFO, machine::affinity(cpu), 0, 0)
}

fn comes_up(cpu: usize, mark: u64) -> bool {
    timer::spin_until(1_000_000, || smp::context(cpu) == mark << 8 | cpu as u64)
}

fn goes_down(cpu: usize) -> bool {
    smp::forget(cpu);
    timer::spin_until(1_000_000, || state(cpu) == OFF)
}

fn on_and_off(tap: &mut Tap, cpu: usize) {
    tap.equal("is off at first", state(cpu), OFF);
    let mark = 0x00c0_ffee_0000_u64;
    tap.equal("CPU_ON", smp::switch_on(cpu, mark), 0);
    tap.check("comes up with its context", comes_up(cpu, mark));
    tap.equal("AFFINITY_INFO says on", state(cpu), ON);
    tap.equal("CPU_ON of a CPU that runs", smp::switch_on(cpu, mark), ALREADY_ON);
    tap.check("CPU_OFF", goes_down(cpu));
    let rounds =
        (1..=20).filter(|&round| smp::switch_on(cpu, round) == 0 && comes_up(cpu, round) && goes_down(cpu));
    tap.equal("on and off twenty times", rounds.count(), 20);
    let narrow = machine::affinity(cpu) & 0xffff_ffff;
    let answer = psci::call(CPU_ON_32, narrow, secondary_entry(), 0x100 | cpu as u64);
    tap.equal("CPU_ON by the 32-bit convention", (answer, comes_up(cpu, 1)), (0, true));
    tap.equal("AFFINITY_INFO by the 32-bit convention", psci::call(AFFINITY_INFO_32, narrow, 0, 0), ON);
    tap.check("CPU_OFF again", goes_down(cpu));
}

fn all_at_once(tap: &mut Tap) {
    let others = 1..machine::cpus();
    let started = others.clone().filter(|&cpu| smp::switch_on(cpu, 7) == 0).count();
    let arrived = others.clone().filter(|&cpu| comes_up(cpu, 7)).count();
    let left = others.clone().filter(|&cpu| goes_down(cpu)).count();
    tap.equal("all CPUs together", (started, arrived, left), (others.len(), others.len(), others.len()));
}
