//! The real CPU.
//!
//! Interrupts are masked for as long as our own code runs, but for the windows of [`take_interrupt`] and [`wait_for_interrupt`].

use super::{Alarm, GuestMsr, HostTables, Leaf};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

/// What the CPU says of itself.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let answer = __cpuid_count(leaf, subleaf);
    Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

/// Reads a model-specific register that the CPU has; for one that it lacks we fault.
#[inline(always)]
#[must_use]
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register changes nothing that Rust relies on.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, nomem, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value keeps guests where they belong and us running.
#[inline(always)]
pub unsafe fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: the caller answers for the value.
    unsafe { asm!("wrmsr", in("ecx") msr, in("rax") low, in("rdx") high, options(nostack, preserves_flags)) };
}

/// Loads a guest's value.
#[inline(always)]
pub fn write_guest_msr(msr: GuestMsr, value: u64) {
    // SAFETY: these registers hold nothing of ours.
    unsafe { write_msr(msr as u32, msr.accepted(value)) };
}

macro_rules! register {
    ($read:ident = $name:literal, $what:literal) => {
        #[doc = $what]
        #[inline(always)]
        #[must_use]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack, nomem, preserves_flags)) };
            value
        }
    };
    ($read:ident, $write:ident = $name:literal, $what:literal) => {
        register!($read = $name, $what);

        #[doc = $what]
        #[inline(always)]
        pub fn $write(value: u64) {
            // SAFETY: the register holds a guest's state, which nothing of ours depends on.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, nomem, preserves_flags)) };
        }
    };
}
register!(read_cr0 = "cr0", "Our own CR0.");
register!(read_cr2, write_cr2 = "cr2", "The address of the last page fault: a guest's, while one is loaded.");
register!(read_cr3 = "cr3", "The root of our own page tables.");
register!(read_cr4 = "cr4", "Our own CR4.");
register!(read_dr0, write_dr0 = "dr0", "A guest's first breakpoint; none of ours is ever on.");
register!(read_dr1, write_dr1 = "dr1", "A guest's second breakpoint.");
register!(read_dr2, write_dr2 = "dr2", "A guest's third breakpoint.");
register!(read_dr3, write_dr3 = "dr3", "A guest's fourth breakpoint.");
register!(read_dr6 = "dr6", "A guest's debug status.");

/// Loads a guest's debug status; reserved bits are what the CPU wants.
#[inline(always)]
pub fn write_dr6(value: u64) {
    let low = value & 0xffff_ffff;
    // SAFETY: the register holds a guest's state; with the upper half clear the CPU takes any value.
    unsafe { asm!("mov dr6, {}", in(reg) low, options(nostack, nomem, preserves_flags)) };
}

/// Changes our own CR4.
///
/// # Safety
/// What our code relies on stays on.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller answers for the value.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Changes our own CR0.
///
/// # Safety
/// What our code relies on stays on.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller answers for the value.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Loads the root of our own page tables.
///
/// # Safety
/// The tables map everything that runs from here on.
pub unsafe fn write_cr3(value: u64) {
    // SAFETY: the caller answers for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// The extended states that are enabled.
#[must_use]
pub fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the register changes nothing; CR4.OSXSAVE is on wherever the CPU has it, else nobody asks.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Enables extended states; `value` is one that the CPU accepts, else we fault.
pub fn write_xcr0(value: u64) {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: no code of ours uses extended states.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("rax") low, in("rdx") high, options(nostack, nomem, preserves_flags))
    };
}

/// The time stamp counter.
#[inline(always)]
#[must_use]
pub fn read_tsc() -> u64 {
    // SAFETY: reading the counter changes nothing.
    unsafe { _rdtsc() }
}

/// Stores before are visible before a write of an x2APIC register has an effect (SDM Vol. 3A, 11.12.3). A fence of Rust's is a
/// locked instruction here, which WRMSR does not wait for.
#[inline(always)]
pub fn fence_stores() {
    // SAFETY: only delays what follows.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Writes all caches back and empties them.
pub fn write_back_caches() {
    // SAFETY: caches are transparent.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Forgets this CPU's translation of our own address `at`.
pub fn invalidate_page(at: u64) {
    // SAFETY: invalidation only makes the translation be fetched again.
    unsafe { asm!("invlpg [{}]", in(reg) at, options(nostack, preserves_flags)) };
}

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt, $bits:literal) => {
        #[doc = concat!("Reads ", $bits, " bits from a port.")]
        ///
        /// # Safety
        /// Reading has no effect that breaks memory safety.
        #[inline(always)]
        #[must_use]
        pub unsafe fn $read(port: u16) -> $type {
            let value;
            // SAFETY: the caller answers for the device.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $bits, " bits to a port.")]
        ///
        /// # Safety
        /// What the device does because of it breaks no memory safety.
        #[inline(always)]
        pub unsafe fn $write(port: u16, value: $type) {
            // SAFETY: the caller answers for the device.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}
port!(in8, out8, u8, "al", "8");
port!(in16, out16, u16, "ax", "16");
port!(in32, out32, u32, "eax", "32");

/// Opens a window for one interrupt: its vector, if one was waiting. It is not acknowledged:
/// [`HostApic::take_interrupt`](super::host_apic::HostApic::take_interrupt) does both. Under SVM the global interrupt flag
/// has to be set.
#[inline(always)]
#[must_use]
pub fn take_interrupt() -> Option<u8> {
    let vector: u32;
    // SAFETY: the stubs of `vectors.S` change nothing but EAX and leave interrupts masked.
    unsafe { asm!("xor eax, eax", "sti", "nop", "cli", out("eax") vector) };
    u8::try_from(vector).ok().filter(|vector| *vector != 0)
}

/// Waits for an interrupt, as [`take_interrupt`]; `None` if something else ended the wait.
#[must_use]
pub fn wait_for_interrupt() -> Option<u8> {
    let vector: u32;
    // SAFETY: as `take_interrupt`; between `sti` and `hlt` no interrupt is taken, so none is missed.
    unsafe { asm!("xor eax, eax", "sti", "hlt", "cli", out("eax") vector) };
    u8::try_from(vector).ok().filter(|vector| *vector != 0)
}

/// Takes an alarm that ended a guest's turn as if it had come outside of one: our handler tells it, and stops the machine.
#[cold]
pub fn raise(alarm: Alarm) -> ! {
    match alarm {
        // SAFETY: the handler has a stack of its own and does not return.
        Alarm::NonMaskable => unsafe { asm!("int 2", "ud2", options(noreturn)) },
        // SAFETY: as above.
        Alarm::MachineCheck => unsafe { asm!("int 18", "ud2", options(noreturn)) },
    }
}

/// Nothing more to do, ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: masked interrupts do not end it; what else does starts it again.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// 64 random bits from the CPU's own source, if it has one that answers.
#[must_use]
pub fn random() -> Option<u64> {
    const RDRAND: u32 = 1 << 30;
    const RDSEED: u32 = 1 << 18;
    const TRIES: u32 = 32;
    let seeds = cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & RDSEED != 0;
    let numbers = cpuid(1, 0).ecx & RDRAND != 0;
    let try_seed = || (0..TRIES).find_map(|_| rdseed());
    let try_number = || (0..TRIES).find_map(|_| rdrand());
    seeds.then(try_seed).flatten().or_else(|| numbers.then(try_number).flatten())
}

fn rdseed() -> Option<u64> {
    let (value, valid): (u64, u8);
    // SAFETY: the caller saw that the CPU has the instruction; it changes its operands only.
    unsafe { asm!("rdseed {}", "setc {}", out(reg) value, out(reg_byte) valid, options(nostack, nomem)) };
    (valid != 0).then_some(value)
}

fn rdrand() -> Option<u64> {
    let (value, valid): (u64, u8);
    // SAFETY: as above.
    unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) valid, options(nostack, nomem)) };
    (valid != 0).then_some(value)
}

/// The operand of SGDT and SIDT.
#[repr(C, packed)]
#[derive(Default)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// This CPU's descriptor tables.
#[must_use]
pub fn host_tables() -> HostTables {
    let (mut gdt, mut idt) = (TablePointer::default(), TablePointer::default());
    let (task, code, data): (u16, u16, u16);
    // SAFETY: the instruction writes its operand of 10 bytes.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut gdt, options(nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack, preserves_flags)) };
    // SAFETY: reading a selector changes nothing.
    unsafe { asm!("str {:x}", out(reg) task, options(nostack, nomem, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("mov {:x}, cs", out(reg) code, options(nostack, nomem, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("mov {:x}, ss", out(reg) data, options(nostack, nomem, preserves_flags)) };
    HostTables {
        code,
        data,
        task,
        task_base: super::descriptors::task_base(task),
        gdt_base: gdt.base,
        idt_base: idt.base,
    }
}

/// Copies the extended states of `mask` to `area`.
///
/// # Safety
/// `area` is aligned to 64 bytes and as large as CPUID leaf 0xd says for all states.
pub(super) unsafe fn xsave(area: *mut u8, mask: u64) {
    let (low, high) = (mask & 0xffff_ffff, mask >> 32);
    // SAFETY: the caller answers for the area; CR4.OSXSAVE is on where there is an area for this.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("rax") low, in("rdx") high, options(nostack, preserves_flags))
    };
}

/// Copies the extended states of `mask` from `area`.
///
/// # Safety
/// As [`xsave`], and `area` was written by it or is a valid initial state.
pub(super) unsafe fn xrstor(area: *const u8, mask: u64) {
    let (low, high) = (mask & 0xffff_ffff, mask >> 32);
    // SAFETY: the caller answers for the area; no code of ours uses these states.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("rax") low, in("rdx") high, options(nostack, preserves_flags))
    };
}

/// Makes the x87 unit's last instruction and operand ours. A pending exception of the last guest must not be raised by it.
pub(super) fn forget_x87_pointers() {
    static OPERAND: u32 = 0;
    // SAFETY: no code of ours uses the unit, and its whole state is loaded next.
    unsafe {
        asm!("fnclex", "ffree st(7)", "fild dword ptr [{}]", in(reg) &raw const OPERAND,
            options(nostack, preserves_flags, readonly));
    };
}

/// Copies x87 and SSE states to `area`.
///
/// # Safety
/// `area` is aligned to 16 bytes and has 512.
pub(super) unsafe fn fxsave(area: *mut u8) {
    // SAFETY: the caller answers for the area.
    unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
}

/// Copies x87 and SSE states from `area`.
///
/// # Safety
/// As [`fxsave`], and `area` was written by it or is a valid initial state.
pub(super) unsafe fn fxrstor(area: *const u8) {
    // SAFETY: the caller answers for the area; no code of ours uses these states.
    unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
}
