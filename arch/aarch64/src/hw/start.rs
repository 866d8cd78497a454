//! From the loader's jump to `run`: stacks, own page tables, the other CPUs, and what happens when we fault ourselves.

use super::loader::{device_tree, pages_around};
use super::mmio::Registers;
use super::pl011::Pl011;
use super::{CURRENT_EL, ELR_EL2, ESR_EL2, FAR_EL2, ID_CRM7_EL1, MPIDR_EL1, TPIDR_EL2};
use super::{clean, dsb, hvc, isb, smc, wait_for_interrupt};
use crate::machine::{Conduit, MAX_CPUS, Machine, console_registers};
use crate::vmsa::{MAIR, Own};
use bulkhead::arch::Ticks;
use bulkhead::console::Uart;
use bulkhead::memory::frames::{Frame, FramePool};
use bulkhead::memory::table::{Format, MapError, Perm, Table};
use bulkhead::memory::{Hpa, PAGE};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Write as _};
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use spin::Once;

/// The stack of the boot CPU, which makes the VMs, and that of each other CPU.
const BOOT_STACK_BYTES: usize = 96 * 1024;
/// See above.
const STACK_BYTES: usize = 24 * 1024;
/// The stack for our own faults, which may be those of the other one.
const EMERGENCY_BYTES: usize = 4096;
/// What is never mapped below a stack: a page.
const GUARD_BYTES: usize = 4096;
const _: () = assert!(GUARD_BYTES as u64 == PAGE);
/// Frames for all translation tables: EL2's own and every guest's.
const POOL_FRAMES: usize = 96;

global_asm!(
    include_str!("entry.S"),
    boot_stack = sym STACKS,
    stack_bytes = const offset_of!(Stack<BOOT_STACK_BYTES>, emergency),
    boot = sym boot,
    secondary = sym secondary,
    start_stack = const offset_of!(Start, stack),
    start_hcr = const offset_of!(Start, hcr),
    start_tcr = const offset_of!(Start, tcr),
    start_vbar = const offset_of!(Start, vbar),
);

unsafe extern "C" {
    safe static bulkhead_image: u8;
    safe static bulkhead_vectors: u8;
    safe static __constants_start: u8;
    safe static __data_start: u8;
    safe static __bss_end: u8;
    fn bulkhead_secondary();
    fn bulkhead_translate_first(start: *const Start);
}

/// A CPU's stacks. The first page of each block is never mapped.
#[repr(C, align(4096))]
struct Stack<const BYTES: usize> {
    guard: [u8; GUARD_BYTES],
    stack: [u8; BYTES],
    emergency: [u8; EMERGENCY_BYTES],
}

impl<const BYTES: usize> Stack<BYTES> {
    const NEW: Self = Self { guard: [0; GUARD_BYTES], stack: [0; BYTES], emergency: [0; EMERGENCY_BYTES] };
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

/// One CPU's block: what it needs before it can translate, and what it is asked for when it faults. `entry.S` and
/// `vectors.S` know the layout.
#[repr(C)]
pub struct Start {
    stack: AtomicU64,
    /// The top of the stack for our own faults.
    pub emergency: AtomicU64,
    hcr: AtomicU64,
    ttbr: AtomicU64,
    tcr: AtomicU64,
    mair: AtomicU64,
    vbar: AtomicU64,
    sctlr: AtomicU64,
    /// Which CPU this is.
    index: AtomicUsize,
}

static STARTS: [Start; MAX_CPUS] = [const {
    Start {
        stack: AtomicU64::new(0),
        emergency: AtomicU64::new(0),
        hcr: AtomicU64::new(0),
        ttbr: AtomicU64::new(0),
        tcr: AtomicU64::new(0),
        mair: AtomicU64::new(0),
        vbar: AtomicU64::new(0),
        sctlr: AtomicU64::new(0),
        index: AtomicUsize::new(0),
    }
}; MAX_CPUS];

/// The machine, once it was read.
static MACHINE: Once<Machine<'static>> = Once::new();

/// The machine that we run on.
///
/// # Panics
/// Before it was read: our own mistake.
pub fn machine() -> &'static Machine<'static> {
    MACHINE.get().expect("the machine is read before anything else")
}

/// Parts of the hypervisor's own image.
fn address(of: &u8) -> u64 {
    core::ptr::from_ref(of).addr() as u64
}

/// The memory that the hypervisor's image takes, stacks, tables and heap included.
pub fn image() -> Range<u64> {
    address(&bulkhead_image)..address(&__bss_end)
}

/// Where a CPU's block of stacks starts, and how long the stack in it is.
fn stack_block(cpu: usize) -> (u64, usize) {
    match cpu.checked_sub(1) {
        None => (STACKS.boot.get().addr() as u64, BOOT_STACK_BYTES),
        Some(other) => {
            let offset = other * size_of::<Stack<STACK_BYTES>>();
            ((STACKS.others.get().addr() + offset) as u64, STACK_BYTES)
        }
    }
}

/// Where a CPU's stack begins: it grows down from here.
pub fn stack_top(cpu: usize) -> u64 {
    let (block, bytes) = stack_block(cpu);
    block + PAGE + bytes as u64
}

/// `ID_AA64MMFR1_EL1.VH`: EL2 can run with VHE.
pub fn has_vhe() -> bool {
    ID_CRM7_EL1::read(1) >> 8 & 0xf != 0
}

/// Entered from `entry.S` on the boot CPU, translation and caches off: no lock, no heap. `entered`: what the counter showed at our
/// first instruction.
extern "C" fn boot(tree: u64, entered: u64) -> ! {
    let Some(tree) = device_tree(tree) else { halt() };
    let level = CURRENT_EL::read() >> 2;
    if level != 2 {
        refuse(
            tree,
            format_args!(
                "started at EL{level}, but a hypervisor needs EL2 (QEMU: -M virt,virtualization=on)"
            ),
        );
    }
    let mut machine = match Machine::read(tree) {
        Ok(machine) => machine,
        Err(error) => refuse(tree, format_args!("{error}")),
    };
    let mut pool = FramePool::new(&POOL);
    let tables = if has_vhe() { own_tables::<Own<true>> } else { own_tables::<Own<false>> };
    let root = match tables(&mut pool, &machine, tree) {
        Ok(root) => root,
        Err(_) => refuse(
            tree,
            format_args!("the tables for the machine's memory do not fit their pool: raise POOL_FRAMES"),
        ),
    };
    let own = MPIDR_EL1::read() & AFFINITY;
    match machine.cpus.iter().position(|cpu| *cpu == own) {
        Some(boot_cpu) => machine.cpus.swap(0, boot_cpu),
        // It is beyond those that are used, or nobody's to start: it is here all the same.
        None => machine.cpus.iter_mut().take(1).for_each(|first| *first = own),
    }
    for (index, start) in STARTS.iter().enumerate() {
        prepare(start, index, root);
    }
    // SAFETY: the tables map everything that runs from here on one to one, and the block is this CPU's.
    unsafe { bulkhead_translate_first(&raw const STARTS[0]) };
    own_block(0);
    let machine = MACHINE.call_once(|| machine);
    crate::program::run(machine, tree, pool, Ticks(entered))
}

/// `MPIDR_EL1`: the affinity fields.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Entered from `entry.S` on every other CPU, translation and caches on.
extern "C" fn secondary(start: &'static Start) -> ! {
    let index = start.index.load(Ordering::Relaxed);
    own_block(index);
    crate::program::run_secondary(index)
}

fn own_block(index: usize) {
    // SAFETY: the register holds the CPU's own block and nothing else uses it.
    unsafe { TPIDR_EL2::write((&raw const STARTS[index]).addr() as u64) };
}

/// The CPU that this is.
pub fn current_cpu() -> usize {
    let offset = TPIDR_EL2::read().wrapping_sub(STARTS.as_ptr().addr() as u64);
    usize::try_from(offset).map_or(0, |offset| offset / size_of::<Start>())
}

/// Starts another CPU by PSCI `CPU_ON` (DEN0022 5.6); the status that firmware answers.
pub fn start_cpu(index: usize) -> u64 {
    const CPU_ON: u64 = 0xc400_0003;
    let (Some(start), Some(target)) = (STARTS.get(index), machine().cpus.get(index)) else { return u64::MAX };
    // The CPU reads its block, and finds tables and code, before its caches are on.
    clean((&raw const *start).addr() as u64, size_of::<Start>());
    clean(POOL.as_ptr().addr() as u64, size_of_val(&POOL));
    let entry: unsafe extern "C" fn() = bulkhead_secondary;
    firmware([CPU_ON, *target, entry as usize as u64, (&raw const *start).addr() as u64])
}

/// Calls the firmware below us.
fn firmware(call: [u64; 4]) -> u64 {
    match MACHINE.get().map(|machine| machine.conduit) {
        Some(Conduit::Hvc) => hvc(call),
        Some(Conduit::Smc) | None => smc(call),
    }
}

/// Switches the machine off by PSCI (DEN0022 5.10).
pub fn power_off() -> ! {
    const SYSTEM_OFF: u64 = 0x8400_0008;
    firmware([SYSTEM_OFF, 0, 0, 0]);
    halt()
}

/// Nothing more to do, ever.
pub fn halt() -> ! {
    loop {
        wait_for_interrupt();
    }
}

fn prepare(start: &Start, index: usize, root: Hpa) {
    let (hcr, tcr) = if has_vhe() { (HCR_E2H | HCR_RW, TCR_VHE) } else { (HCR_RW, TCR_PLAIN) };
    let stack = stack_top(index);
    start.stack.store(stack, Ordering::Relaxed);
    start.emergency.store(stack + EMERGENCY_BYTES as u64, Ordering::Relaxed);
    start.hcr.store(hcr, Ordering::Relaxed);
    start.ttbr.store(root.0, Ordering::Relaxed);
    let range = ID_CRM7_EL1::read(0) & 7;
    let shift = if has_vhe() { 32 } else { 16 };
    start.tcr.store(tcr | range.min(5) << shift, Ordering::Relaxed);
    start.mair.store(MAIR, Ordering::Relaxed);
    start.vbar.store(address(&bulkhead_vectors), Ordering::Relaxed);
    start.sctlr.store(SCTLR, Ordering::Relaxed);
    start.index.store(index, Ordering::Relaxed);
}

/// HCR_EL2: EL1 is AArch64; EL2 runs with VHE.
const HCR_RW: u64 = 1 << 31;
const HCR_E2H: u64 = 1 << 34;
/// TCR_EL2 (Arm ARM D24.2.187): 48 bits, 4 KiB, walks cached and inner shareable; RES1 bits, or no TTBR1 with VHE.
const TCR_WALK: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12;
const TCR_PLAIN: u64 = TCR_WALK | 1 << 23 | 1 << 31;
const TCR_VHE: u64 = TCR_WALK | 1 << 23;
/// SCTLR_EL2 (D24.2.167): RES1 bits, translation, data and instruction cache, stack alignment, nothing writable executes.
const SCTLR: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

/// EL2's own tables: all RAM that may be mapped and the devices that we drive, one to one; our image by its parts; a hole below each stack.
fn own_tables<F: Format>(pool: &mut FramePool, machine: &Machine<'_>, tree: &[u8]) -> Result<Hpa, MapError> {
    let table = Table::<F>::new(pool, 48).ok_or(MapError::NoFrames)?;
    let mut map = |range: Range<u64>, perm| {
        if range.start >= range.end {
            return Ok(());
        }
        table.map_range(pool, range.start, Hpa(range.start), range.end - range.start, perm)
    };
    let image = image();
    for part in machine.mappable() {
        map(part.start..part.end.min(image.start), Perm::DATA)?;
        map(part.start.max(image.end)..part.end, Perm::DATA)?;
    }
    map(image.start..address(&__constants_start), Perm::CODE)?;
    map(address(&__constants_start)..address(&__data_start), Perm::CONSTANT)?;
    let mut next = address(&__data_start);
    for cpu in 0..MAX_CPUS {
        let (guard, _) = stack_block(cpu);
        map(next..guard, Perm::DATA)?;
        next = guard + PAGE;
    }
    map(next..image.end, Perm::DATA)?;
    let tree = tree.as_ptr().addr() as u64;
    if !machine.ram.iter().any(|bank| bank.contains(&tree)) {
        return Err(MapError::BadAddress);
    }
    map(pages_around(machine.gic.distributor.clone()), Perm::DEVICE)?;
    for region in &machine.gic.redistributors {
        map(pages_around(region.clone()), Perm::DEVICE)?;
    }
    if let Some(uart) = &machine.uart {
        map(pages_around(uart.registers.clone()), Perm::DEVICE)?;
    }
    if let Some(rtc) = &machine.rtc {
        map(pages_around(rtc.clone()), Perm::DEVICE)?;
    }
    dsb();
    isb();
    Ok(table.root())
}

/// Device registers that the machine's tree names.
pub fn registers(range: &Range<u64>) -> Registers {
    // SAFETY: the machine's tree says that a device is there, `own_tables` maps it as one, and none of the devices that we
    // drive (GIC, UART, clock) writes to memory.
    unsafe { Registers::new(range) }
}

fn uart_at(range: &Range<u64>) -> Pl011 {
    Pl011::new(registers(range))
}

struct Direct(Pl011);

impl fmt::Write for Direct {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while !self.0.has_room() {
                core::hint::spin_loop();
            }
            self.0.put(byte);
        }
        Ok(())
    }
}

/// Says why nothing is booted, if the machine has a console, on a machine that has nothing running yet.
fn refuse(tree: &[u8], why: fmt::Arguments<'_>) -> ! {
    if let Some(range) = console_registers(tree) {
        // The UART takes everything.
        let _ = write!(Direct(uart_at(&range)), "\x1e[log] \x1fbulkhead: nothing is booted: {why}\r\n");
    }
    halt()
}

/// Says something without the console's lock, which whoever failed may hold.
pub fn say_directly(line: fmt::Arguments<'_>) {
    if let Some(uart) = MACHINE.get().and_then(|machine| machine.uart.as_ref()) {
        // As above.
        let _ = write!(Direct(uart_at(&uart.registers)), "\x1e\r\n[log] \x1f{line}\r\n");
    }
}

/// Entered from `vectors.S`: we faulted ourselves.
pub extern "C" fn trap(kind: u64, stack: u64) -> ! {
    let esr = crate::esr::Esr(ESR_EL2::read());
    super::recovery::fail(format_args!(
        "our own fault on CPU {} (vector {kind}): {esr}; at {:#x} of the image, address {:#x}, {} bytes of stack left",
        current_cpu(),
        ELR_EL2::read().wrapping_sub(image().start),
        FAR_EL2::read(),
        stack.saturating_sub(stack_block(current_cpu()).0 + PAGE),
    ))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let what = info.message();
    match info.location() {
        Some(place) => {
            super::recovery::fail(format_args!("panic on CPU {}: {what}, at {place}", current_cpu()))
        }
        None => super::recovery::fail(format_args!("panic on CPU {}: {what}", current_cpu())),
    }
}
