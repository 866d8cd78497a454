//! Registers of the processor, one instruction each.
#![expect(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;

use crate::attempt;
use crate::exception::Fault;

/// CPUID: EAX, EBX, ECX, EDX.
#[must_use]
pub fn id(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx);
    // SAFETY: reads what the processor is; RBX is put back.
    unsafe {
        asm!("xchg {b:r}, rbx", "cpuid", "xchg {b:r}, rbx", b = out(reg) ebx,
            inout("eax") leaf => eax, inout("ecx") subleaf => ecx, out("edx") edx, options(nostack));
    }
    [eax, ebx, ecx, edx]
}

/// RDMSR.
///
/// # Errors
/// The exception that it raised.
pub fn read_msr(number: u32) -> Result<u64, Fault> {
    let (mut low, mut high) = (0_u64, 0_u64);
    // SAFETY: reads a register; a register that is not there is recovered from.
    let fault =
        unsafe { attempt!("rdmsr"; in("ecx") number, inout("rax") low, inout("rdx") high, options(nostack)) };
    fault.map_or(Ok(low & 0xffff_ffff | high << 32), Err)
}

/// WRMSR; the exception that it raised, if any.
pub fn write_msr(number: u32, value: u64) -> Option<Fault> {
    // SAFETY: who writes a register that the program stands on means it.
    unsafe { attempt!("wrmsr"; in("ecx") number, in("rax") value, in("rdx") value >> 32, options(nostack)) }
}

macro_rules! register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[must_use]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack)) };
            value
        }

        #[doc = concat!("Writes ", $name, "; the exception that it raised, if any.")]
        pub fn $write(value: u64) -> Option<Fault> {
            // SAFETY: who changes what the program stands on means it.
            unsafe { attempt!(concat!("mov ", $name, ", {v}"); v = in(reg) value, options(nostack)) }
        }
    };
}

register!(cr0, set_cr0, "cr0");
register!(cr3, set_cr3, "cr3");
register!(cr4, set_cr4, "cr4");
register!(cr8, set_cr8, "cr8");
register!(dr0, set_dr0, "dr0");
register!(dr7, set_dr7, "dr7");

/// The time stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("rax") low, out("rdx") high, options(nomem, nostack)) };
    low | high << 32
}

/// RFLAGS.
#[must_use]
pub fn flags() -> u64 {
    let value;
    // SAFETY: reads a register by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

/// PAUSE.
pub fn pause() {
    core::hint::spin_loop();
}
