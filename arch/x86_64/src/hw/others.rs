//! Starting the other CPUs: INIT, then a start-up that names a page below 1 MiB (SDM Vol. 3A, 9.4.4), one at a time.

use super::host_apic::HostApic;
use super::read_tsc;
use super::start::{machine, rates, root, set_up_cpu, stack};
use bulkhead::arch::Unsupported;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// What the CPU that is being started needs before it can run Rust code; `entry.S` reads them.
pub(super) static OTHER_ROOT: AtomicU32 = AtomicU32::new(0);
/// See above.
pub(super) static OTHER_STACK: AtomicU64 = AtomicU64::new(0);
/// Which CPU it is, and which one has begun.
static STARTING: AtomicUsize = AtomicUsize::new(0);
/// See above.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// The manual's example waits 10 ms after INIT, for CPUs of 1995; those that have what a hypervisor needs are ready at once.
const AFTER_INIT_US: u64 = 100;
/// How long until a start-up is sent again, and until the CPU counts as dead.
const AFTER_STARTUP_US: u64 = 1000;
/// See above.
const DEAD_AFTER_US: u64 = 2_000_000;
/// How often is looked meanwhile.
const LOOK_US: u64 = 20;

unsafe extern "C" {
    safe static bulkhead_trampoline: u8;
    safe static bulkhead_trampoline_end: u8;
}

/// Starts CPU `index`, which goes on in the program. `apic` is that of the CPU that executes this; its timer is used.
///
/// # Errors
/// [`Unsupported`] if it does not begin.
pub fn start_cpu(apic: &HostApic, index: usize) -> Result<(), Unsupported> {
    let machine = machine();
    let id = *machine.cpus.get(index).ok_or(Unsupported("a CPU was to be started that the machine lacks"))?;
    let page = machine
        .trampoline
        .ok_or(Unsupported("no page below 640 KiB is free, but other CPUs begin there: use one CPU"))?;
    lay_trampoline(page);
    let root = u32::try_from(root()).map_err(|_| Unsupported("our own tables lie above 4 GiB"))?;
    OTHER_ROOT.store(root, Ordering::SeqCst);
    OTHER_STACK.store(stack(index).end, Ordering::SeqCst);
    STARTING.store(index, Ordering::SeqCst);
    apic.send_init(id);
    wait_us(apic, AFTER_INIT_US, || false);
    for limit in [AFTER_STARTUP_US, DEAD_AFTER_US] {
        apic.send_startup(id, page);
        if wait_us(apic, limit, || BEGUN.load(Ordering::SeqCst) == index) {
            return Ok(());
        }
    }
    Err(Unsupported("a CPU that firmware's tables name does not start"))
}

/// Copies the trampoline to its page.
fn lay_trampoline(page: u8) {
    let from = &raw const bulkhead_trampoline;
    let bytes = (&raw const bulkhead_trampoline_end).addr() - from.addr();
    let to = with_exposed_provenance_mut::<u8>(usize::from(page) << 12);
    // SAFETY: less than a page of code, to a page that the loader called free, that is mapped, and that nothing else uses.
    unsafe { core::ptr::copy_nonoverlapping(from, to, bytes) };
}

/// Waits until `is_done` or so many microseconds have passed; whether it is done. Asleep, so that on an emulator that runs one
/// CPU at a time the other one gets its turn.
fn wait_us(apic: &HostApic, limit: u64, is_done: impl Fn() -> bool) -> bool {
    let ticks = |us: u64| rates().tsc_hz.saturating_mul(us) / 1_000_000;
    let end = read_tsc().saturating_add(ticks(limit));
    while !is_done() {
        let now = read_tsc();
        if now >= end {
            return false;
        }
        apic.set_deadline(Some(now.saturating_add(ticks(LOOK_US)).min(end)));
        // Whatever comes, it was not for this: the core asks for its own timer later.
        let _ = apic.wait_for_interrupt();
    }
    apic.set_deadline(None);
    true
}

/// Entered from `entry.S` on every other CPU, on our own tables.
pub(super) extern "C" fn other() -> ! {
    let index = STARTING.load(Ordering::SeqCst);
    set_up_cpu(index);
    BEGUN.store(index, Ordering::SeqCst);
    crate::program::run_secondary(index)
}
