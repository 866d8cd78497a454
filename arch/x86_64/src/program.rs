//! The program, once it runs on its own page tables: brings up what the core needs and hands over to it, with the one of the two
//! vendors that the CPU is of.

use crate::hw::clock::{Source, wall_clock_ns};
use crate::hw::host_apic::{HostApic, vector};
use crate::hw::interrupts::route;
use crate::hw::loader::{archive, memory};
use crate::hw::others::start_cpu;
use crate::hw::pc16550::has_backlog;
use crate::hw::start::{image, local_apic, machine, rates, uart};
use crate::hw::{cpuid, heap, power, random, read_tsc};
use crate::machine::{MAX_CPUS, Machine, RAM_LIMIT};
use crate::svm::Svm;
use crate::vcpu::speculation_facts;
use crate::vendor::Vendor;
use crate::vmx::Vmx;
use crate::x86::{Platform, X86};
use alloc::boxed::Box;
use bulkhead::arch::{CpuId, CpuMain, Ticks, Unsupported};
use bulkhead::boot::Boot;
use bulkhead::console::Console;
use bulkhead::memory::frames::FramePool;
use core::fmt::Display;
use spin::Once;

static CONSOLE: Console = Console::new();
static LOGGER: Logger = Logger;
/// What the CPUs that are being started do.
static CPU_MAIN: Once<Main> = Once::new();
/// The local APIC of the CPU that starts the others.
static BOOT_APIC: Once<HostApic> = Once::new();
/// Different each time the machine starts, if its CPU has a source of random numbers.
static ENTROPY: Once<[u8; 32]> = Once::new();

/// The core's loop, on the machine's one kind of CPU.
enum Main {
    Svm(&'static CpuMain<X86<Svm>>),
    Vmx(&'static CpuMain<X86<Vmx>>),
}

/// A vendor that the program knows.
trait Known: Vendor {
    fn main(main: &'static CpuMain<X86<Self>>) -> Main;
}

impl Known for Svm {
    fn main(main: &'static CpuMain<X86<Self>>) -> Main {
        Main::Svm(main)
    }
}

impl Known for Vmx {
    fn main(main: &'static CpuMain<X86<Self>>) -> Main {
        Main::Vmx(main)
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        CONSOLE.log(*record.args());
    }

    fn flush(&self) {}
}

/// The boot CPU: on our own tables, frames are left in `pool`.
pub(crate) fn run(machine: &'static Machine, pool: FramePool, entered: Ticks) -> ! {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    // A second logger cannot have been set: nothing ran before.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Info);
    if let Some(mut uart) = uart() {
        uart.start_receiving();
        CONSOLE.attach(Box::new(uart));
    }
    report(machine);
    if cpuid(1, 0).ecx & VMX != 0 {
        boot::<Vmx>(machine, pool, entered)
    } else if cpuid(0x8000_0001, 0).ecx & SVM != 0 {
        boot::<Svm>(machine, pool, entered)
    } else {
        refuse(&"the CPU has neither VMX nor SVM: a hypervisor needs one of them (QEMU: -cpu EPYC,+svm)")
    }
}

/// Says what was found.
fn report(machine: &Machine) {
    let rates = rates();
    log::info!(
        "Bulkhead {} on {} CPUs, {} MiB in {} banks",
        env!("CARGO_PKG_VERSION"),
        machine.cpus.len(),
        machine.ram.iter().map(|bank| bank.end - bank.start).sum::<u64>() >> 20,
        machine.ram.len()
    );
    log::info!(
        "time stamp counter: {}.{:03} MHz, {}",
        rates.tsc_hz / 1_000_000,
        rates.tsc_hz / 1000 % 1000,
        match rates.source {
            Source::PmTimer => "measured by the ACPI timer",
            Source::Pit => "measured by the 8254",
            Source::Cpu => "as the CPU says",
        }
    );
    for warning in speculation_facts(&machine.cpus).warnings() {
        log::warn!("{warning}");
    }
    if machine.unused_cpus > 0 {
        log::warn!(
            "{} more CPUs are not used: beyond {MAX_CPUS}, or out of the APIC's reach",
            machine.unused_cpus
        );
    }
    if machine.unused_bytes > 0 {
        log::warn!("{} MiB beyond {} GiB are not used", machine.unused_bytes >> 20, RAM_LIMIT >> 30);
    }
}

fn boot<V: Known>(machine: &'static Machine, pool: FramePool, entered: Ticks) -> ! {
    let host = local_apic();
    if !route(machine, machine.uart.wire, vector::UART, host.id()) {
        log::warn!("the console's UART cannot interrupt: input waits for other interrupts");
    }
    BOOT_APIC.call_once(|| host);
    if let Some(entropy) = entropy() {
        ENTROPY.call_once(|| entropy);
    }
    let arch = match this_cpu::<V>(machine, host) {
        Ok(arch) => arch,
        Err(error) => refuse(&error),
    };
    let boot = Boot {
        memory: memory(machine),
        frames: pool,
        archive: archive(machine),
        cpus: u32::try_from(machine.cpus.len()).unwrap_or(1),
        epoch_ns: wall_clock_ns(machine.century).saturating_sub(counted_ns()),
        entered,
        console: &CONSOLE,
        resident_bytes: image().end - image().start,
        sealed: heap::seal,
    };
    let error = bulkhead::main(arch, boot);
    refuse(&error)
}

/// Every other CPU.
pub(crate) fn run_secondary(index: usize) -> ! {
    match CPU_MAIN.get() {
        Some(Main::Svm(main)) => run_main(main, index),
        Some(Main::Vmx(main)) => run_main(main, index),
        None => refuse(&"a CPU started that nobody called"),
    }
}

fn run_main<V: Known>(main: &CpuMain<X86<V>>, index: usize) -> ! {
    match this_cpu(machine(), local_apic()) {
        Ok(arch) => match main(arch, CpuId(u32::try_from(index).unwrap_or(0))) {},
        Err(error) => refuse(&error),
    }
}

/// Nothing is booted: one line, and the end.
fn refuse(why: &dyn Display) -> ! {
    log::error!("bulkhead: nothing is booted: {why}");
    power_off()
}

/// Switches the machine off, when the consoles' output is out.
fn power_off() -> ! {
    /// A UART that nobody listens to may never send.
    const PATIENCE_S: u64 = 2;
    let end = read_tsc().saturating_add(rates().tsc_hz.saturating_mul(PATIENCE_S));
    while has_backlog() && read_tsc() < end {
        CONSOLE.service();
    }
    power::power_off()
}

/// Switches on the extension of the CPU that executes this.
fn this_cpu<V: Known>(machine: &'static Machine, host: HostApic) -> Result<X86<V>, Unsupported> {
    let vendor = V::enable()?;
    let platform = Platform {
        start_cpu: start::<V>,
        power_off,
        apic_ids: &machine.cpus,
        ticks_per_second: rates().tsc_hz,
        entropy: ENTROPY.get().map_or(&[], |entropy| entropy),
    };
    Ok(X86::new(vendor, host, platform))
}

fn start<V: Known>(index: usize, main: &'static CpuMain<X86<V>>) -> Result<(), Unsupported> {
    CPU_MAIN.call_once(|| V::main(main));
    let apic =
        BOOT_APIC.get().ok_or(Unsupported("a CPU was to be started before the first one was ready"))?;
    start_cpu(apic, index)
}

fn entropy() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for chunk in bytes.as_chunks_mut::<8>().0 {
        *chunk = random()?.to_le_bytes();
    }
    Some(bytes)
}

/// Nanoseconds since the time stamp counter was 0.
fn counted_ns() -> u64 {
    let ns = u128::from(read_tsc()) * 1_000_000_000 / u128::from(rates().tsc_hz.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
