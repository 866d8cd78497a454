//! What a guest finds at entry: registers, devices, ID registers, and what it must not find.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "FP and UNDEFINED instructions")]

use core::arch::asm;
use core::hint::black_box;

use bulkhead_test_guests::exception::{self, UNDEFINED};
use bulkhead_test_guests::registers as r;
use bulkhead_test_guests::tap::Tap;
use bulkhead_test_guests::{console, entry_state, gic, machine, mmio, mmu, timer};

bulkhead_test_guests::program!(main);

const RTC: usize = 0x0901_0000;

/// EC: SME trapped by `CPACR_EL1`.
const SME_TRAP: u64 = 0x1d;

fn main() {
    let mut tap = Tap::start("tap-basic");
    let hypervised = machine::is_hypervised();
    entry(&mut tap);
    floating_point(&mut tap);
    devices(&mut tap);
    translation(&mut tap);
    counter(&mut tap);
    written_then_read(&mut tap);
    offered(&mut tap);
    not_offered(&mut tap, hypervised);
    undefined(&mut tap, hypervised);
    single_step(&mut tap);
    tap.finish();
}

fn entry(tap: &mut Tap) {
    let state = entry_state();
    let [x0, x1, x2, x3] = state.arguments;
    tap.equal("x0 is 8-aligned", x0 % 8, 0);
    tap.check("x0 is the address of an FDT in RAM", is_device_tree(x0));
    tap.equal("x1 to x3 are 0", [x1, x2, x3], [0; 3]);
    tap.equal("CurrentEL is EL1", state.current_el >> 2, 1);
    tap.equal("DAIF is masked", state.daif >> 6, 0b1111);
    tap.equal("the MMU is off", state.sctlr & 1, 0);
    tap.equal("data is little-endian", state.sctlr & 1 << 25, 0);
    tap.check("the FDT has a CPU", machine::cpus() >= 1);
    let affinity = r::mpidr_el1::read() & 0xff_00ff_ffff;
    tap.equal("the first CPU of the FDT is this one", machine::affinity(0), affinity);
}

fn is_device_tree(address: u64) -> bool {
    usize::try_from(address).is_ok_and(machine::is_ram) && machine::device_tree().data().len() > 40
}

fn floating_point(tap: &mut Tap) {
    r::cpacr_el1::write(0);
    let trapped = exception::catch(|| {
        // SAFETY: no code here keeps anything in v0.
        unsafe { asm!(".arch_extension fp", "fmov d0, xzr", options(nostack)) };
    });
    tap.equal("FP traps to EL1 while CPACR forbids it", trapped.map(|fault| fault.class()), Some(7));
    r::cpacr_el1::write(3 << 20);
    let mut sum: u64 = 2.5f64.to_bits();
    let worked = exception::catch(|| {
        // SAFETY: no code here keeps anything in v0 or v1.
        unsafe {
            asm!(".arch_extension fp", ".arch_extension simd", "fmov d0, {s}", "dup v1.2d, v0.d[0]",
                "fadd v0.2d, v1.2d, v1.2d", "mov {s}, v0.d[1]", s = inout(reg) sum, options(nostack));
        }
    });
    tap.equal("FP and SIMD work once CPACR allows them", (worked, sum), (None, 5.0f64.to_bits()));
}

fn devices(tap: &mut Tap) {
    let id =
        |base: usize| (0..4).fold(0, |all, byte| all | mmio::read32(base + 0xfe0 + byte * 4) << (8 * byte));
    let cell =
        |base: usize| (0..4).fold(0, |all, byte| all | mmio::read32(base + 0xff0 + byte * 4) << (8 * byte));
    tap.equal("the UART is a PL011", id(console::UART) & 0x000f_ffff, 0x0004_1011);
    tap.equal("the UART is a PrimeCell", cell(console::UART), 0xb105_f00d);
    let flags = mmio::read32(console::FLAGS);
    tap.equal("UART flags: empty, idle, able to send", flags & 0xb8, 0x90);
    tap.equal("the clock is a PL031", id(RTC) & 0x000f_ffff, 0x0004_1031);
    tap.equal("the clock is a PrimeCell", cell(RTC), 0xb105_f00d);
    let start = mmio::read32(RTC);
    tap.check("the clock is past 2024", start > 1_704_067_200);
    let begun = timer::now();
    let moved = timer::spin_until(3_000_000, || mmio::read32(RTC) != start);
    let later = mmio::read32(RTC);
    tap.check("the clock counts seconds", moved && later.wrapping_sub(start) <= 2);
    let again = timer::spin_until(3_000_000, || mmio::read32(RTC) != later);
    let passed = timer::now() - begun;
    tap.check("the clock keeps the counter's pace", again && passed <= timer::ticks(2_500_000));
    let typer = mmio::read32(gic::GICD_TYPER);
    tap.check("the GIC has 288 interrupts", typer & 0x1f == 8);
    tap.equal("the GIC is a GICv3", mmio::read32(gic::GICD + 0xffe8) >> 4 & 0xf, 3);
}

fn translation(tap: &mut Tap) {
    tap.equal("the MMU and the caches are on", r::sctlr_el1::read() & 0x1005, 0x1005);
    let mark = 0x1234_5678_9abc_def0_u64;
    let cell = black_box(&mark);
    let address = core::ptr::from_ref(cell).expose_provenance();
    tap.equal("AT finds the identity map", mmu::translate(address), Some(address as u64));
    let gigabyte = address >> 30;
    mmu::alias(Some(gigabyte as u64));
    let shown = mmu::ALIAS | address & ((1 << 30) - 1);
    tap.equal("AT finds a second map", mmu::translate(shown), Some(address as u64));
    tap.equal("memory shows through a second map", mmio::read64(shown), mark);
    mmu::alias(None);
    tap.equal("AT finds nothing after unmapping", mmu::translate(shown), None);
    let fault = exception::catch(|| {
        let _ = mmio::read64(shown);
    });
    let found = fault.map(|fault| (fault.class(), fault.status() & 0x3c, fault.far));
    tap.equal("a load there is the guest's own translation fault", found, Some((0x25, 0x04, shown as u64)));
}

fn counter(tap: &mut Tap) {
    let frequency = r::cntfrq_el0::read();
    tap.check("CNTFRQ is between 1 MHz and 1 GHz", (1_000_000..=1_000_000_000).contains(&frequency));
    let first = timer::now();
    tap.check("CNTVCT runs", timer::spin_until(100_000, || timer::now() > first));
    let backwards = (0..10_000).any(|_| {
        let before = timer::now();
        timer::now() < before
    });
    tap.check("CNTVCT never goes back", !backwards);
    let physical = r::cntpct_el0::read();
    tap.check("CNTPCT runs", timer::spin_until(100_000, || r::cntpct_el0::read() > physical));
}

fn written_then_read(tap: &mut Tap) {
    type Pair = (&'static str, fn(u64), fn() -> u64, u64);
    let pairs: [Pair; 13] = [
        ("CONTEXTIDR_EL1", r::contextidr_el1::write, r::contextidr_el1::read, 0x1357_9bdf),
        ("TPIDR_EL0", r::tpidr_el0::write, r::tpidr_el0::read, 0x0123_4567_89ab_cdef),
        ("FAR_EL1", r::far_el1::write, r::far_el1::read, 0x0000_dead_beef_f00d),
        ("CNTKCTL_EL1", r::cntkctl_el1::write, r::cntkctl_el1::read, 0x3),
        ("CNTP_CVAL_EL0", r::cntp_cval_el0::write, r::cntp_cval_el0::read, 0x7fff_0000_1234_5678),
        ("CNTP_CTL_EL0", r::cntp_ctl_el0::write, r::cntp_ctl_el0::read, 0x2),
        ("CNTV_CVAL_EL0", r::cntv_cval_el0::write, r::cntv_cval_el0::read, 0x7fff_0000_8765_4321),
        ("CNTV_CTL_EL0", r::cntv_ctl_el0::write, r::cntv_ctl_el0::read, 0x2),
        ("ICC_PMR_EL1", r::icc_pmr_el1::write, r::icc_pmr_el1::read, 0xa0),
        ("ICC_BPR1_EL1", r::icc_bpr1_el1::write, r::icc_bpr1_el1::read, 0x5),
        ("ICC_IGRPEN1_EL1", r::icc_igrpen1_el1::write, r::icc_igrpen1_el1::read, 0x1),
        ("CSSELR_EL1", r::csselr_el1::write, r::csselr_el1::read, 0x0),
        ("CPACR_EL1", r::cpacr_el1::write, r::cpacr_el1::read, 0x30_0000),
    ];
    for (name, write, read, value) in pairs {
        let mut found = 0;
        let fault = exception::catch(|| {
            write(value);
            found = read();
        });
        tap.equal(name, (fault, found), (None, value));
    }
    r::icc_igrpen1_el1::write(0);
    tap.equal("ICC_SRE_EL1.SRE is set", r::icc_sre_el1::read() & 1, 1);
    let quiet: [(&str, fn()); 5] = [
        ("ACTLR_EL1 may be written", || r::actlr_el1::write(r::actlr_el1::read())),
        ("AMAIR_EL1 and AFSR0_EL1 may be written", || {
            r::amair_el1::write(0);
            r::afsr0_el1::write(0);
        }),
        ("OSLAR_EL1 and OSLSR_EL1 are there", || {
            r::oslar_el1::write(0);
            let _ = r::oslsr_el1::read();
        }),
        ("MDSCR_EL1 and DBGBVR0_EL1 are there", || {
            r::mdscr_el1::write(0);
            r::dbgbvr0_el1::write(0x1000);
            let _ = r::dbgbvr0_el1::read();
        }),
        ("CLIDR_EL1 and CCSIDR_EL1 are there", || {
            let _ = r::clidr_el1::read() ^ r::ccsidr_el1::read();
        }),
    ];
    for (name, operation) in quiet {
        tap.equal(name, exception::catch(operation), None);
    }
}

fn offered(tap: &mut Tap) {
    let features = r::id_aa64pfr0_el1::read();
    tap.check("ID_AA64PFR0: EL1 is AArch64", features >> 4 & 0xf >= 1);
    tap.equal("ID_AA64PFR0: FP and SIMD agree", features >> 16 & 0xf, features >> 20 & 0xf);
    tap.equal("ID_AA64PFR0: GIC system registers", features >> 24 & 0x1, 1);
    tap.check("ID_AA64MMFR0: 4 KiB pages", r::id_aa64mmfr0_el1::read() >> 28 & 0xf != 0xf);
    tap.check("ID_AA64DFR0: two breakpoints at least", r::id_aa64dfr0_el1::read() >> 12 & 0xf >= 1);
    tap.check("MIDR names somebody", r::midr_el1::read() != 0);
    let unallocated = exception::catch(|| {
        // SAFETY: reads an ID register that is not allocated; those are zero (Arm ARM D17.3.1).
        unsafe { asm!("mrs {}, s3_0_c0_c7_7", out(reg) _, options(nostack)) };
    });
    tap.equal("ID registers that are not allocated read quietly", unallocated, None);
}

fn not_offered(tap: &mut Tap, hypervised: bool) {
    let features = r::id_aa64pfr0_el1::read();
    let more = r::id_aa64pfr1_el1::read();
    let debug = r::id_aa64dfr0_el1::read();
    let fields = [
        ("EL2 is not offered", features >> 8 & 0xf),
        ("EL3 is not offered", features >> 12 & 0xf),
        ("RAS is not offered", features >> 28 & 0xf),
        ("MPAM is not offered", features >> 40 & 0xf | more >> 16 & 0xf),
        ("MTE is not offered", more >> 8 & 0xf),
        ("SME is not offered", more >> 24 & 0xf),
        ("a PMU is not offered", (debug >> 8 & 0xf) % 0xf),
        ("a trace unit is not offered", debug >> 4 & 0xf),
        ("profiling is not offered", debug >> 32 & 0xf),
    ];
    for (name, field) in fields {
        if hypervised {
            tap.equal(name, field, 0);
        } else {
            tap.skip(name, "native");
        }
    }
}

fn undefined(tap: &mut Tap, hypervised: bool) {
    type Instruction = (&'static str, bool, fn());
    let instructions: [Instruction; 11] = [
        ("UDF", true, || {
            // SAFETY: permanently UNDEFINED.
            unsafe { asm!("udf #7", options(nostack)) };
        }),
        ("HCR_EL2", true, || drop_value(r::hcr_el2::read())),
        ("ICC_SRE_EL2", true, || drop_value(r::icc_sre_el2::read())),
        ("SCR_EL3", true, || drop_value(r::scr_el3::read())),
        ("a write of CNTFRQ_EL0", false, || {
            let frequency = r::cntfrq_el0::read();
            // SAFETY: UNDEFINED below the highest exception level; else it writes what is there.
            unsafe { asm!("msr cntfrq_el0, {}", in(reg) frequency, options(nostack)) };
        }),
        ("PMCR_EL0", false, || drop_value(r::pmcr_el0::read())),
        ("PMCCNTR_EL0", false, || drop_value(r::pmccntr_el0::read())),
        ("ERRIDR_EL1", false, || drop_value(r::erridr_el1::read())),
        ("MPAMIDR_EL1", false, || drop_value(r::mpamidr_el1::read())),
        ("RGSR_EL1 (MTE)", false, || drop_value(r::rgsr_el1::read())),
        ("SMCR_EL1 (SME)", false, || drop_value(r::smcr_el1::read())),
    ];
    for (name, everywhere, instruction) in instructions {
        if !everywhere && !hypervised {
            tap.skip(name, "native may offer it");
            continue;
        }
        let found = exception::catch(instruction).map(|fault| fault.class());
        // Where the CPU has SME, CPACR_EL1 traps it to EL1 before EL2 can say that it is not there.
        let trapped_here = found == Some(SME_TRAP) && name.contains("SME");
        tap.equal(name, if trapped_here { Some(UNDEFINED) } else { found }, Some(UNDEFINED));
    }
    let fault = exception::catch(|| drop_value(r::hcr_el2::read())).map(|fault| fault.elr);
    tap.check("ELR names the UNDEFINED instruction", fault.is_some_and(in_ram));
}

/// Runs `$instruction` as a single step; how many bytes further the CPU was when the step was over.
macro_rules! step {
    ($instruction:literal) => {{
        let mut start = 0u64;
        let fault = exception::catch(|| {
            // SAFETY: returns to the next lines in the state that this runs in, with debug exceptions let in; x20 may be read.
            unsafe {
                asm!("adr {start}, 2f", "msr elr_el1, {start}", "msr spsr_el1, {pstate}", "msr mdscr_el1, {step}", "isb",
                    "eret", "2:", $instruction, "nop", "nop", "msr daifset, #8",
                    start = out(reg) start, pstate = in(reg) STEPPED, step = in(reg) STEP_KERNEL,
                    in("x20") console::FLAGS, out("x21") _, options(nostack));
            }
        });
        fault.map(|fault| (fault.class(), fault.elr - start))
    }};
}

/// SPSR_EL1: EL1h with A, I and F masked, D not, and one instruction to go (Arm ARM D2.12).
const STEPPED: u64 = 1 << 21 | 0x1c5;
/// MDSCR_EL1: KDE, SS.
const STEP_KERNEL: u64 = 1 << 13 | 1;

fn single_step(tap: &mut Tap) {
    r::oslar_el1::write(0);
    let one_instruction = Some((exception::STEP, 4));
    tap.equal("a single step is one instruction", step!("nop"), one_instruction);
    tap.equal("so is one over a load from a device", step!("ldr w21, [x20]"), one_instruction);
    tap.equal("so is one over a software interrupt", step!("msr s3_0_c12_c11_5, xzr"), one_instruction);
    tap.equal("so is one over a trapped register", step!("mrs x21, id_aa64pfr0_el1"), one_instruction);
}

fn in_ram(address: u64) -> bool {
    usize::try_from(address).is_ok_and(machine::is_ram)
}

const fn drop_value(_value: u64) {}
