//! What the processor says that it is, and what it lets be read and written: nothing is named that does not work.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use bulkhead_test_guests_x86::exception::GP;
use bulkhead_test_guests_x86::tap::Tap;
use bulkhead_test_guests_x86::{MAX_CPUS, acpi, apic, cpu, machine, println, smp, timer};

bulkhead_test_guests_x86::program!(main, bulkhead_test_guests_x86::exception::unexpected_interrupt, helper);

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

/// Where each CPU leaves LSTAR as it found it, and is let to go on.
static FOUND: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn helper(index: usize) {
    let _ = cpu::write_msr(LSTAR, 0x1111 * (index as u64 + 1));
    timer::delay(20_000);
    FOUND[index].store(cpu::read_msr(LSTAR).unwrap_or(0), Release);
}

fn main() {
    let mut tap = Tap::start("tap-x86-msr-cpuid");
    identity(&mut tap);
    extended_state(&mut tap);
    kept(&mut tap);
    refused(&mut tap);
    own(&mut tap);
    time(&mut tap);
    tap.finish();
}

/// A field of CPUID.
fn has(leaf: u32, subleaf: u32, register: usize, bit: u32) -> bool {
    cpu::id(leaf, subleaf)[register] & 1 << bit != 0
}

fn identity(tap: &mut Tap) {
    let [highest, ..] = cpu::id(0, 0);
    let [extended, ..] = cpu::id(0x8000_0000, 0);
    println!("# leaves to {highest:#x} and {extended:#x}");
    tap.check("there are leaves", highest >= 7 && extended >= 0x8000_0008);
    // Long mode, PAE, MSRs, APIC, SSE2, FXSR: what this program has used by now.
    for (name, leaf, register, bit) in [
        ("the APIC", 1, 3, 9),
        ("MSRs", 1, 3, 5),
        ("the time stamp counter", 1, 3, 4),
        ("PAE", 1, 3, 6),
        ("FXSR", 1, 3, 24),
        ("SSE2", 1, 3, 26),
        ("long mode", 0x8000_0001, 3, 29),
        ("no-execute pages", 0x8000_0001, 3, 20),
    ] {
        println!("# {name}");
        tap.check("what works is named", has(leaf, 0, register, bit));
    }
    tap.equal("the initial APIC identifier is ACPI's", cpu::id(1, 0)[1] >> 24, acpi::apic_id(0));
    if !machine::is_hypervised() {
        tap.skip("what is not offered", "natively there is more");
        return;
    }
    for (name, leaf, register, bit) in [
        ("VMX", 1, 2, 5),
        ("SMX", 1, 2, 6),
        ("SVM", 0x8000_0001, 2, 2),
        ("SKINIT", 0x8000_0001, 2, 12),
        ("DTES64", 1, 2, 2),
        ("machine monitoring", 1, 2, 3),
        ("SGX", 7, 1, 2),
    ] {
        println!("# {name}");
        tap.check("what does not work is not named", !has(leaf, 0, register, bit));
    }
    tap.equal("no performance counters are named", cpu::id(10, 0)[0] & 0xff, 0);
}

fn extended_state(tap: &mut Tap) {
    if !has(1, 0, 2, 26) {
        tap.skip("XSAVE", "not offered");
        return;
    }
    let before = has(1, 0, 2, 27);
    tap.equal("OSXSAVE is off at first", before, false);
    tap.equal("CR4.OSXSAVE can be set", cpu::set_cr4(cpu::cr4() | 1 << 18), None);
    tap.check("and CPUID follows", has(1, 0, 2, 27));
    let [low, in_use, whole, high] = cpu::id(13, 0);
    println!("# XCR0 may hold {high:#x}:{low:#x}, {in_use} of {whole} bytes");
    tap.equal("x87 and SSE can be saved", low & 3, 3);
    tap.check("the areas have sizes", (576..=whole).contains(&in_use));
    tap.equal("CR4.OSXSAVE can be cleared", cpu::set_cr4(cpu::cr4() & !(1 << 18)), None);
    tap.check("and CPUID follows again", !has(1, 0, 2, 27));
}

/// Registers that keep what they are given.
fn kept(tap: &mut Tap) {
    let aux = has(0x8000_0001, 0, 3, 27);
    for (name, number, value, exists) in [
        ("STAR", STAR, 0x0013_0008_1234_5678, true),
        ("LSTAR", LSTAR, 0xffff_8000_1234_5678, true),
        ("FMASK", FMASK, 0x4_7700, true),
        ("FS.base", FS_BASE, 0x1234_5678_9abc, true),
        ("KernelGSbase", KERNEL_GS_BASE, 0xffff_ffff_8000_0000, true),
        ("TSC_AUX", TSC_AUX, 7, aux),
        ("SYSENTER_CS", SYSENTER_CS, 0x10, true),
        ("SYSENTER_ESP", SYSENTER_ESP, 0x7fff_f000, true),
        ("SYSENTER_EIP", SYSENTER_EIP, 0x10_0000, true),
        ("PAT", PAT, 0x0007_0406_0007_0406, true),
    ] {
        if !exists {
            tap.skip(name, "not offered");
            continue;
        }
        let before = cpu::read_msr(number);
        tap.equal(name, (cpu::write_msr(number, value), cpu::read_msr(number)), (None, Ok(value)));
        let _ = cpu::write_msr(number, before.unwrap_or(0));
    }
    let efer = cpu::read_msr(EFER).unwrap_or(0);
    tap.equal("EFER.SCE can be set", cpu::write_msr(EFER, efer | 1), None);
    tap.equal("and is", cpu::read_msr(EFER), Ok(efer | 1));
    let _ = cpu::write_msr(EFER, efer);
}

fn refused(tap: &mut Tap) {
    if machine::is_emulated_amd() {
        tap.skip("what is refused", "QEMU refuses less");
        return;
    }
    let fault = |outcome: Option<bulkhead_test_guests_x86::exception::Fault>| {
        outcome.map(|fault| (fault.vector, fault.error))
    };
    for (name, number, value) in [
        ("LSTAR that is not canonical", LSTAR, 1 << 62),
        ("KernelGSbase that is not canonical", KERNEL_GS_BASE, 1 << 62),
        ("PAT with a type that is none", PAT, 2),
        ("a reserved bit of EFER", EFER, 1 << 40 | 0xd00),
    ] {
        println!("# {name}");
        let before = cpu::read_msr(number);
        let found = fault(cpu::write_msr(number, value));
        if found.is_none() && machine::is_amd() {
            // Registers that a hypervisor leaves to the processor: QEMU's takes what a real one refuses.
            tap.skip("is refused", "the processor takes it");
            let _ = cpu::write_msr(number, before.unwrap_or(0));
        } else {
            tap.equal("is refused", found, Some((GP, 0)));
        }
    }
    if !machine::is_hypervised() {
        return;
    }
    for (name, number) in [
        ("VMX capabilities", 0x480),
        ("VM_HSAVE_PA", 0xc001_0117),
        ("nothing at all", 0x1234_5678),
        ("microcode patches of a wrong kind", 0xc001_1fff),
    ] {
        println!("# {name}");
        tap.equal("cannot be read", fault(cpu::read_msr(number).err()), Some((GP, 0)));
        tap.equal("nor written", fault(cpu::write_msr(number, 0)), Some((GP, 0)));
    }
    // VM_CR.SVMDIS (APM Vol. 2, 15.30.1).
    let locked = cpu::read_msr(0xc001_0114);
    tap.check(
        "SVM is not there or disabled",
        locked.is_err() || locked.is_ok_and(|value| value & 1 << 4 != 0),
    );
    tap.equal("EFER.SVME is refused", fault(cpu::write_msr(EFER, 0x1d00)), Some((GP, 0)));
    let feature = cpu::read_msr(0x3a);
    tap.check("VMX cannot be switched on", feature.is_err() || feature == Ok(feature.unwrap_or(0) & !4));
    println!("# IA32_MISC_ENABLE: {:x?}", cpu::read_msr(MISC_ENABLE));
}

/// Each CPU has registers of its own.
fn own(tap: &mut Tap) {
    tap.equal("LSTAR here", cpu::write_msr(LSTAR, 0xaaaa), None);
    let others = (1..acpi::cpus()).filter(|&index| smp::start(index)).count();
    tap.equal("all CPUs start", others + 1, acpi::cpus());
    for (index, found) in FOUND.iter().enumerate().take(acpi::cpus()).skip(1) {
        tap.check("a CPU is done", timer::spin_until(1_000_000, || found.load(Acquire) != 0));
        tap.equal("its register is its own", found.load(Acquire), 0x1111 * (index as u64 + 1));
    }
    tap.equal("and so is this one", cpu::read_msr(LSTAR), Ok(0xaaaa));
}

fn time(tap: &mut Tap) {
    let mut last = cpu::tsc();
    let backwards = (0..10_000).filter(|_| {
        let now = cpu::tsc();
        let is_back = now < last;
        last = now;
        is_back
    });
    tap.equal("the time stamp counter never runs back", backwards.count(), 0);
    if machine::is_emulated_amd() {
        tap.skip("the counter's MSR", "QEMU has none");
    } else {
        let (by_instruction, by_msr) = (cpu::tsc(), cpu::read_msr(TSC).unwrap_or(0));
        let between = by_msr.wrapping_sub(by_instruction);
        tap.check("its MSR shows the same", between < timer::ticks(100_000));
    }
    set_counter(tap);
    tap.equal(
        "the boot processor's APIC works",
        cpu::read_msr(apic::BASE_MSR).map(|base| base & 0x900),
        Ok(0x900),
    );
}

/// The counter's own register and TSC_ADJUST move what RDTSC reads (SDM Vol. 3B, 18.17).
fn set_counter(tap: &mut Tap) {
    if machine::is_emulated_amd() {
        tap.skip("a counter that is written", "QEMU has none");
        return;
    }
    let (step, nearly) = (timer::ticks(10_000_000), timer::ticks(9_000_000));
    let before = cpu::tsc();
    tap.equal("the counter can be written", cpu::write_msr(TSC, before + step), None);
    let ahead = cpu::tsc();
    tap.check("and is read as written", ahead.wrapping_sub(before) > nearly);
    if !has(7, 0, 1, 1) {
        tap.skip("TSC_ADJUST", "not offered");
        return;
    }
    let adjust = cpu::read_msr(TSC_ADJUST).unwrap_or(0);
    tap.check("TSC_ADJUST tells by how much", adjust > nearly);
    tap.equal("and takes it back", cpu::write_msr(TSC_ADJUST, adjust.wrapping_sub(step)), None);
    tap.check("for RDTSC too", ahead.wrapping_sub(cpu::tsc()).cast_signed() > nearly.cast_signed() / 2);
}
