//! The program, once it translates: brings up what the core needs and hands over to it.

use crate::el2::{El2, Platform};
use crate::gic::host;
use crate::hw::loader::{archive, memory};
use crate::hw::mmio::Registers;
use crate::hw::pl011::Pl011;
use crate::hw::start::{image, machine, power_off, registers, start_cpu};
use crate::hw::{CNTFRQ_EL0, CNTPCT_EL0, enable, heap};
use crate::machine::{MAX_CPUS, Machine};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bulkhead::arch::{CpuId, CpuMain, Ticks, Unsupported};
use bulkhead::boot::Boot;
use bulkhead::console::Console;
use bulkhead::memory::frames::FramePool;
use core::fmt::Display;
use spin::Once;

static CONSOLE: Console = Console::new();
static LOGGER: Logger = Logger;
/// What the CPUs that are being started do.
static CPU_MAIN: Once<&'static CpuMain<El2>> = Once::new();

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

/// The boot CPU: translation and caches are on, frames are left in `pool`.
pub(crate) fn run(
    machine: &'static Machine<'static>,
    tree: &'static [u8],
    pool: FramePool,
    entered: Ticks,
) -> ! {
    // A second logger cannot have been set: nothing ran before.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Info);
    if let Some(uart) = &machine.uart {
        let mut device = Pl011::new(registers(&uart.registers));
        device.start_receiving();
        CONSOLE.attach(Box::new(device));
    }
    log::info!(
        "Bulkhead {} on {} CPUs, {} MiB in {} banks",
        env!("CARGO_PKG_VERSION"),
        machine.cpus.len(),
        machine.ram.iter().map(|bank| bank.end - bank.start).sum::<u64>() >> 20,
        machine.ram.len()
    );
    if machine.unused_cpus > 0 {
        log::warn!(
            "{} more CPUs are not used: disabled, not started by PSCI, or beyond {MAX_CPUS}",
            machine.unused_cpus
        );
    }
    let distributor = registers(&machine.gic.distributor);
    if let Err(error) = host::enable_distributor(&distributor) {
        refuse(&error);
    }
    let arch = match this_cpu(0) {
        Ok(arch) => arch,
        Err(error) => refuse(&error),
    };
    if let (Some(intid), Some(affinity)) =
        (machine.uart.as_ref().and_then(|uart| uart.intid), machine.cpus.first())
    {
        host::enable_shared(&distributor, intid, *affinity);
    }
    let boot = Boot {
        memory: memory(machine, tree),
        frames: pool,
        archive: archive(machine),
        cpus: u32::try_from(machine.cpus.len()).unwrap_or(1),
        epoch_ns: epoch_ns(machine),
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
    let Some(main) = CPU_MAIN.get() else { refuse(&"a CPU started that nobody called") };
    match this_cpu(index) {
        Ok(arch) => match main(arch, CpuId(u32::try_from(index).unwrap_or(0))) {},
        Err(error) => refuse(&error),
    }
}

/// Nothing is booted: one line, and the end.
fn refuse(why: &dyn Display) -> ! {
    log::error!("bulkhead: nothing is booted: {why}");
    power_off()
}

/// Switches on EL2's controls, the GIC's private part and its interface, of the CPU that executes this.
fn this_cpu(index: usize) -> Result<El2, Unsupported> {
    let machine = machine();
    let facts = enable::enable()?;
    let affinity = machine.cpus.get(index).copied().unwrap_or(0);
    let regions: Vec<Registers> = machine.gic.redistributors.iter().map(registers).collect();
    let stride = machine.gic.stride.and_then(|stride| usize::try_from(stride).ok());
    let redistributor = host::redistributor(&regions, stride, affinity)
        .ok_or(Unsupported("the GIC has no redistributor for one of the CPUs"))?;
    let timers = &machine.timers;
    let private =
        [timers.physical_intid, timers.virtual_intid, timers.hypervisor_intid, machine.gic.maintenance_intid]
            .iter()
            .fold(0, |intids, intid| intids | 1 << (intid & 31));
    host::enable_private(&redistributor, private)?;
    host::enable_interface();
    Ok(El2::new(facts, machine, redistributor, Platform { start_cpu: start, power_off }))
}

fn start(index: usize, main: &'static CpuMain<El2>) -> u64 {
    CPU_MAIN.call_once(|| main);
    start_cpu(index)
}

/// Nanoseconds between 1970 and the moment when the counter was 0, by the machine's clock if there is one.
fn epoch_ns(machine: &Machine<'_>) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    let Some(rtc) = &machine.rtc else { return 0 };
    let now = u64::from(registers(rtc).read32(0)) * SECOND;
    let since = u128::from(CNTPCT_EL0::read()) * u128::from(SECOND) / u128::from(CNTFRQ_EL0::read().max(1));
    now.saturating_sub(u64::try_from(since).unwrap_or(0))
}
