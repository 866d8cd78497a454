//! From the loader's jump to `run`: stacks, own page tables, and what happens when we fault ourselves. `others` starts the other
//! CPUs, `power` ends it all.

use super::descriptors::{self, CODE_32, CODE_64, DATA, GDT, GDT_LIMIT};
use super::host_apic::HostApic;
use super::identity::Tables;
use super::loader::{LoaderError, pages_around};
use super::others::{OTHER_ROOT, OTHER_STACK, other};
use super::pc16550::Pc16550;
use super::power::power_off;
use super::recovery::{fail, stop};
use super::tables::{Own, PAT};
use super::{clock, cpuid, loader, read_cr2, read_cr3, read_cr4, read_msr, read_tsc};
use super::{write_cr3, write_cr4, write_msr};
use crate::machine::{self, MAX_CPUS, Machine, MachineError, Register};
use bulkhead::arch::Ticks;
use bulkhead::console::Uart as _;
use bulkhead::memory::frames::{Frame, FramePool};
use bulkhead::memory::table::{Format, MapError, Perm, Table};
use bulkhead::memory::{Hpa, PAGE};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Write as _};
use core::mem::offset_of;
use core::ops::Range;
use spin::Once;

/// The stack of the boot CPU, which makes the VMs, and that of each other CPU.
const BOOT_STACK_BYTES: usize = 96 * 1024;
/// See above.
const STACK_BYTES: usize = 40 * 1024;
/// The stack for our own faults, and that for what comes from outside at any time.
const FAULT_BYTES: usize = 4096;
/// What is never mapped below a stack: a page.
const GUARD_BYTES: usize = 4096;
const _: () = assert!(GUARD_BYTES as u64 == PAGE);
/// Frames for all translation tables: our own and every guest's.
const POOL_FRAMES: usize = 128;

global_asm!(
    include_str!("entry.S"),
    code_64 = const CODE_64,
    code_32 = const CODE_32,
    data = const DATA,
    gdt = sym GDT,
    gdt_limit = const GDT_LIMIT,
    cr0 = const CR0,
    cr4 = const CR4,
    boot_stack = sym STACKS,
    stack_end = const offset_of!(Stack<BOOT_STACK_BYTES>, end),
    boot = sym boot,
    other = sym other,
    other_root = sym OTHER_ROOT,
    other_stack = sym OTHER_STACK,
    options(att_syntax),
);

/// CR0 (SDM Vol. 3A, 2.5): PG, WP, NE, ET, MP, PE; caches are on.
const CR0: u64 = 0x8001_0033;
/// CR4: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;
/// CR4: XSAVE may be used.
const OSXSAVE: u64 = 1 << 18;
const IA32_PAT: u32 = 0x277;
const IA32_XSS: u32 = 0xda0;

unsafe extern "C" {
    safe static __image_start: u8;
    safe static __constants_start: u8;
    safe static __data_start: u8;
    safe static __bss_end: u8;
}

/// A CPU's stacks, each above a page that is never mapped.
#[repr(C, align(4096))]
struct Stack<const BYTES: usize> {
    faults_guard: [u8; GUARD_BYTES],
    faults: [u8; FAULT_BYTES],
    alarms_guard: [u8; GUARD_BYTES],
    alarms: [u8; FAULT_BYTES],
    guard: [u8; GUARD_BYTES],
    stack: [u8; BYTES],
    end: [u8; 0],
}

impl<const BYTES: usize> Stack<BYTES> {
    const NEW: Self = Self {
        faults_guard: [0; GUARD_BYTES],
        faults: [0; FAULT_BYTES],
        alarms_guard: [0; GUARD_BYTES],
        alarms: [0; FAULT_BYTES],
        guard: [0; GUARD_BYTES],
        stack: [0; BYTES],
        end: [],
    };
    const GUARDS: [usize; 3] =
        [offset_of!(Self, faults_guard), offset_of!(Self, alarms_guard), offset_of!(Self, guard)];
}

#[repr(C)]
struct Stacks {
    boot: UnsafeCell<Stack<BOOT_STACK_BYTES>>,
    others: UnsafeCell<[Stack<STACK_BYTES>; MAX_CPUS - 1]>,
}

// SAFETY: no Rust code reaches into the stacks; each CPU gets one of its own.
unsafe impl Sync for Stacks {}

static STACKS: Stacks =
    Stacks { boot: UnsafeCell::new(Stack::NEW), others: UnsafeCell::new([Stack::NEW; MAX_CPUS - 1]) };

static POOL: [Frame; POOL_FRAMES] = [Frame::EMPTY; POOL_FRAMES];

/// The machine, once it was read.
static MACHINE: Once<Machine> = Once::new();
/// How fast its counters run, once they were measured.
static RATES: Once<clock::Rates> = Once::new();

/// The machine that we run on.
///
/// # Panics
/// Before it was read: our own mistake.
pub fn machine() -> &'static Machine {
    MACHINE.get().expect("the machine is read before anything else")
}

/// The machine, if it was read already.
pub(super) fn known_machine() -> Option<&'static Machine> {
    MACHINE.get()
}

/// How fast the counters run.
///
/// # Panics
/// Before they were measured: our own mistake.
pub fn rates() -> clock::Rates {
    *RATES.get().expect("the counters are measured before anything else")
}

/// Parts of the hypervisor's own image.
fn address(of: &u8) -> u64 {
    core::ptr::from_ref(of).addr() as u64
}

/// The memory that the hypervisor's image takes, stacks, tables and heap included.
pub fn image() -> Range<u64> {
    address(&__image_start)..address(&__bss_end)
}

/// Where a CPU's block of stacks starts, and how long the stack at its end is.
fn stack_block(cpu: usize) -> (u64, usize) {
    match cpu.checked_sub(1) {
        None => (STACKS.boot.get().addr() as u64, BOOT_STACK_BYTES),
        Some(other) => {
            let offset = other * size_of::<Stack<STACK_BYTES>>();
            ((STACKS.others.get().addr() + offset) as u64, STACK_BYTES)
        }
    }
}

/// The lowest byte of a CPU's stack, and the end of it.
pub(super) fn stack(cpu: usize) -> Range<u64> {
    let (block, bytes) = stack_block(cpu);
    let bottom = block + offset_of!(Stack<STACK_BYTES>, stack) as u64;
    bottom..bottom + bytes as u64
}

/// The CPU that this is: the one whose stacks are in use.
pub fn current_cpu() -> usize {
    let here = 0u8;
    let here = (&raw const here).addr() as u64;
    (0..MAX_CPUS).find(|cpu| (stack_block(*cpu).0..stack(*cpu).end).contains(&here)).unwrap_or(0)
}

/// Entered from `entry.S` on the boot CPU, with the lower 4 GiB mapped.
extern "C" fn boot(magic: u64, info: u64) -> ! {
    let entered = Ticks(read_tsc());
    descriptors::make_gates();
    set_up_cpu(0);
    let mut pool = FramePool::new(&POOL);
    let (machine, root) = match find_machine(magic, info, &mut pool) {
        Ok(found) => found,
        Err(error) => refuse(&error),
    };
    // SAFETY: the tables map everything that runs from here on one to one.
    unsafe { write_cr3(root.0) };
    let machine = MACHINE.call_once(|| machine);
    match clock::measure(machine.pm_timer, &local_apic()) {
        Some(rates) => RATES.call_once(|| rates),
        None => refuse(&"no ACPI timer and no 8254 runs: there is nothing to measure time by"),
    };
    crate::program::run(machine, pool, entered)
}

/// Why there is no machine to boot on. Displays as one line with the mend.
enum BootError {
    Loader(LoaderError),
    Machine(MachineError),
    Tables,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(error) => error.fmt(f),
            Self::Machine(error) => error.fmt(f),
            Self::Tables => {
                f.write_str("the tables for the machine's memory do not fit their pool: raise POOL_FRAMES")
            }
        }
    }
}

/// The machine, and the root of tables that map it.
fn find_machine(magic: u64, info: u64, pool: &mut FramePool) -> Result<(Machine, Hpa), BootError> {
    const GIGABYTE_PAGES: u32 = 1 << 26;
    let handover = loader::read(magic, info).map_err(BootError::Loader)?;
    // SAFETY: the lower 4 GiB are mapped one to one, and nobody writes to firmware's tables.
    let tables = handover.rsdp.and_then(|rsdp| unsafe { Tables::at(rsdp) });
    let tables = tables.ok_or(BootError::Machine(MachineError::NoTables))?;
    let (own, last) = own_apic();
    let machine = Machine::read(&handover, &tables, own, last).map_err(BootError::Machine)?;
    let make = if cpuid(0x8000_0001, 0).edx & GIGABYTE_PAGES != 0 {
        own_tables::<Own<true>>
    } else {
        own_tables::<Own<false>>
    };
    let root = make(pool, &machine).map_err(|_| BootError::Tables)?;
    Ok((machine, root))
}

/// The number of this CPU's APIC, and the last number that it reaches.
fn own_apic() -> (u32, u32) {
    const X2APIC: u32 = 1 << 21;
    const LAST: u32 = 254;
    let features = cpuid(1, 0);
    if features.ecx & X2APIC != 0 && cpuid(0, 0).eax >= 0xb {
        return (cpuid(0xb, 0).edx, u32::MAX - 1);
    }
    (features.ebx >> 24, LAST)
}

/// What every CPU sets before anything else: its descriptors, what its page tables mean, and extended states.
pub(super) fn set_up_cpu(cpu: usize) {
    const XSAVE: u32 = 1 << 26;
    const XSAVES: u32 = 1 << 3;
    let (block, _) = stack_block(cpu);
    let faults = block + (offset_of!(Stack<STACK_BYTES>, faults) + FAULT_BYTES) as u64;
    let alarms = block + (offset_of!(Stack<STACK_BYTES>, alarms) + FAULT_BYTES) as u64;
    descriptors::load(cpu, faults, alarms);
    // SAFETY: the value after power-on: what is mapped already keeps its meaning.
    unsafe { write_msr(IA32_PAT, PAT) };
    if cpuid(1, 0).ecx & XSAVE != 0 {
        // SAFETY: it allows guests' states to be saved; no code of ours has any.
        unsafe { write_cr4(read_cr4() | OSXSAVE) };
        if cpuid(0xd, 1).eax & XSAVES != 0 {
            // SAFETY: no state of supervisors is saved, whatever firmware left there.
            unsafe { write_msr(IA32_XSS, 0) };
        }
    }
}

/// Our own tables: all RAM and the devices that we drive, one to one; our image by its parts; a hole below each stack.
fn own_tables<F: Format>(pool: &mut FramePool, machine: &Machine) -> Result<Hpa, MapError> {
    let table = Table::<F>::new(pool, 48).ok_or(MapError::NoFrames)?;
    let mut map = |range: Range<u64>, perm| {
        if range.start >= range.end {
            return Ok(());
        }
        table.map_range(pool, range.start, Hpa(range.start), range.end - range.start, perm)
    };
    let image = image();
    for bank in &machine.ram {
        map(bank.start..bank.end.min(image.start), Perm::DATA)?;
        map(bank.start.max(image.end)..bank.end, Perm::DATA)?;
    }
    map(image.start..address(&__constants_start), Perm::CODE)?;
    map(address(&__constants_start)..address(&__data_start), Perm::CONSTANT)?;
    let mut next = address(&__data_start);
    for (cpu, guard) in (0..MAX_CPUS).flat_map(|cpu| Stack::<STACK_BYTES>::GUARDS.map(|guard| (cpu, guard))) {
        let guard = stack_block(cpu).0 + guard as u64;
        map(next..guard, Perm::DATA)?;
        next = guard + PAGE;
    }
    map(next..image.end, Perm::DATA)?;
    if let Some(page) = machine.trampoline {
        let at = u64::from(page) * PAGE;
        map(at..at + PAGE, Perm::DATA)?;
    }
    for page in device_pages(machine) {
        // Two devices may share a page.
        match map(page..page + PAGE, Perm::DEVICE) {
            Ok(()) | Err(MapError::Occupied) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(table.root())
}

/// The pages of device registers that we use.
fn device_pages(machine: &Machine) -> impl Iterator<Item = u64> {
    let memory = |register| match register {
        Register::Memory(at) => Some(at),
        Register::Port(_) => None,
    };
    let [first, second] = machine.power.control;
    let power = [first, second, machine.power.reduced, machine.power.reset.map(|(register, _)| register)];
    let apics = machine.io_apics.iter().map(|controller| controller.registers);
    let apic_base = read_msr(0x1b) & 0x000f_ffff_ffff_f000;
    apics
        .chain([machine.local_apic, apic_base])
        .chain(memory(machine.uart.registers))
        .chain(power.into_iter().flatten().filter_map(memory))
        .map(|at| pages_around(at..at + 1).start)
}

/// Switches on the local APIC of the CPU that executes this: once on each.
pub(crate) fn local_apic() -> HostApic {
    // SAFETY: `own_tables` mapped the APIC's registers.
    unsafe { HostApic::enable(RATES.get().map_or(0, |rates| rates.apic_ratio)) }
}

/// The machine's UART, as far as it is known. Whoever drives it already is about to fall silent.
pub(crate) fn uart() -> Option<Pc16550> {
    const COM1: machine::Uart =
        machine::Uart { registers: Register::Port(0x3f8), stride: 1, wire: None, is_set_up: false };
    let uart = MACHINE.get().map_or(COM1, |machine| machine.uart);
    // SAFETY: firmware's tables name it, and `own_tables` maps it; before, it is where PCs have it, or nothing is there.
    unsafe { Pc16550::new(&uart) }
}

struct Direct(Pc16550);

impl fmt::Write for Direct {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        /// A UART whose other end does not listen takes everything; one that hangs is left.
        const MOST_LOOKS: u32 = 1_000_000;
        for byte in text.bytes() {
            for _ in 0..MOST_LOOKS {
                if self.0.has_room() {
                    break;
                }
                core::hint::spin_loop();
            }
            self.0.put(byte);
        }
        Ok(())
    }
}

/// Says why nothing is booted, if the machine has a console, on a machine that has nothing running yet.
fn refuse(why: &dyn fmt::Display) -> ! {
    if let Some(uart) = uart() {
        // The UART takes everything.
        let _ = write!(Direct(uart), "\x1e[log] \x1fbulkhead: nothing is booted: {why}\r\n");
    }
    power_off()
}

/// Says something without the console's lock, which whoever failed may hold.
pub fn say_directly(line: fmt::Arguments<'_>) {
    if let Some(uart) = uart() {
        // As above.
        let _ = write!(Direct(uart), "\x1e\r\n[log] \x1f{line}\r\n");
    }
}

/// What a stub of `vectors.S` and the CPU put on the stack.
#[repr(C)]
pub(super) struct Fault {
    vector: u64,
    error: u64,
    at: u64,
    code: u64,
    flags: u64,
    stack: u64,
    data: u64,
}

/// Entered from `vectors.S`: we faulted ourselves, or the machine tells of damage.
pub(super) extern "C" fn trap(fault: &Fault) -> ! {
    let cpu = current_cpu();
    let say = match Origin::of(fault.vector) {
        Origin::Code => fail,
        Origin::Machine => stop,
    };
    say(format_args!(
        "our own fault on CPU {cpu}: {} (vector {}, error {:#x}) at {:#x}, address {:#x}, {} bytes of stack left",
        exception(fault.vector),
        fault.vector,
        fault.error,
        fault.at,
        read_cr2(),
        fault.stack.saturating_sub(stack(cpu).start),
    ))
}

/// Where an exception is from.
enum Origin {
    /// From what this CPU was doing.
    Code,
    /// From anywhere: a damaged machine, or descriptor tables that are no longer ours.
    Machine,
}

impl Origin {
    const fn of(vector: u64) -> Self {
        const NMI: u64 = 2;
        const DOUBLE_FAULT: u64 = 8;
        const MACHINE_CHECK: u64 = 18;
        match vector {
            NMI | DOUBLE_FAULT | MACHINE_CHECK => Self::Machine,
            _ => Self::Code,
        }
    }
}

/// What the manual calls an exception (SDM Vol. 3A, table 6-1).
fn exception(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt: the machine reports an error",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        10 => "invalid task state",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check: the machine reports an error",
        19 => "SIMD error",
        _ => "exception",
    }
}

/// The root of our own tables, for other CPUs.
pub(super) fn root() -> u64 {
    read_cr3()
}

#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let what = info.message();
    match info.location() {
        Some(place) => fail(format_args!("panic on CPU {}: {what}, at {place}", current_cpu())),
        None => fail(format_args!("panic on CPU {}: {what}", current_cpu())),
    }
}
