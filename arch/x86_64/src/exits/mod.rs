//! What becomes of each [`Event`]: a match to named functions. What is not the back end's own leaves as an [`Exit`].

mod control;
mod exception;
mod guest;
mod instruction;
mod memory;
mod msr;
mod port;

use crate::control::efer;
use crate::hw::{self, trail::Code};
use crate::insn::{self, Known};
use crate::mmio::Guest as _;
use crate::vcpu::{Vcpu, todo};
use crate::vendor::{Control, Delivery, Event, Register, Segment, SegmentName, Vendor};
use crate::x86::X86;
use bulkhead::arch::{Exit, Fault, Place, Stop};
use bulkhead::vm::Vm;
use guest::View;

/// RFLAGS: single step, and no instruction breakpoint at the next instruction (SDM Vol. 1, 3.4.3).
const TRAP: u64 = 1 << 8;
const RESUME: u64 = 1 << 16;
/// DR6: a single step (SDM Vol. 3B, 17.2.3).
const DR6_STEP: u64 = 1 << 14;
/// DR7: any access to debug registers raises #DB (SDM Vol. 3B, 18.2.4).
const DR7_DETECT: u64 = 1 << 13;

/// Exceptions by vector (SDM Vol. 3A, table 6-1).
mod exception_vector {
    pub(super) const DEBUG: u8 = 1;
    pub(super) const UNDEFINED: u8 = 6;
    pub(super) const STACK: u8 = 12;
    pub(super) const PROTECTION: u8 = 13;
    pub(super) const PAGE: u8 = 14;
}

/// Serves what ended the guest's turn. `None`: the guest goes on.
#[inline(always)]
pub(crate) fn serve<V: Vendor>(
    arch: &X86<V>,
    event: Event,
    vcpu: &mut Vcpu<V>,
    vm: &Vm<X86<V>>,
) -> Option<Exit> {
    match event {
        Event::Interrupt(vector) => arch.interrupt(vector, vcpu),
        Event::Port(access) => arch.port(access, vcpu, vm),
        Event::Memory(access) => arch.memory(access, vcpu, vm),
        Event::WriteMsr => arch.write_msr(vcpu, vm),
        Event::ReadMsr => arch.read_msr(vcpu, vm),
        Event::Cpuid => arch.cpuid(vcpu, vm),
        Event::Halt => arch.halt(vcpu, vm),
        Event::Hypercall => arch.hypercall(vcpu, vm),
        Event::PageWrite(register) => arch.page_write(register, vcpu, vm),
        Event::PageEnd(vector) => arch.page_end(vector, vcpu, vm),
        Event::Window | Event::Deadline => {
            vcpu.todo |= todo::LOOK;
            None
        }
        _ => rare(arch, event, vcpu, vm),
    }
}

#[cold]
#[inline(never)]
fn rare<V: Vendor>(arch: &X86<V>, event: Event, vcpu: &mut Vcpu<V>, vm: &Vm<X86<V>>) -> Option<Exit> {
    match event {
        Event::Control(access) => arch.control(access, vcpu, vm),
        Event::Exception(exception) => arch.exception(exception, vcpu, vm),
        Event::Xsetbv => arch.xsetbv(vcpu, vm),
        Event::CacheFlush => arch.skip_any(vcpu, vm),
        Event::ReadCounter => arch.raise(vcpu, Delivery::exception(exception_vector::PROTECTION, Some(0))),
        Event::Forbidden => arch.raise(vcpu, Delivery::exception(exception_vector::UNDEFINED, None)),
        Event::TaskSwitch(_) => {
            fault("it switched tasks by hardware, which this CPU does not do for guests", None)
        }
        Event::Shutdown => {
            fault("it shut down its CPU by a triple fault: a handler of a double fault faulted", None)
        }
        Event::Alarm(alarm) => hw::raise(alarm),
        Event::Refused(cause) => fault(cause, None),
        // The hot ones are served above; these are over.
        _ => None,
    }
}

/// The instruction at hand in 64-bit mode, if the way to it is known.
#[inline(always)]
fn known_code<V: Vendor>(vcpu: &Vcpu<V>) -> Option<Code> {
    let control = &vcpu.control;
    if !is_64_bit(control) {
        return None;
    }
    vcpu.trails.find(control.get(Register::Rip), control.get(Register::Cr3), control.get(Register::Cr4))
}

/// The CPU has executed the instruction at hand: remembers the way to it.
fn learn_code<V: Vendor>(vcpu: &mut Vcpu<V>, vm: &Vm<X86<V>>) {
    let control = &vcpu.control;
    if is_64_bit(control) {
        let [rip, cr3, cr4] = [Register::Rip, Register::Cr3, Register::Cr4].map(|name| control.get(name));
        vcpu.trails.learn(vm.memory(), rip, cr3, cr4);
    }
}

#[inline(always)]
fn is_64_bit<C: Control>(control: &C) -> bool {
    control.attributes(SegmentName::Cs) & Segment::LONG != 0 && control.get(Register::Efer) & efer::LMA != 0
}

/// How long the instruction `known` is if it begins with `first`, without a prefix.
#[inline(always)]
const fn plain_length(first: u32, known: Known) -> Option<u8> {
    let (mask, code, length) = match known {
        Known::Halt => (0xff, 0xf4, 1),
        Known::Cpuid => (0xffff, 0xa20f, 2),
        Known::ReadMsr => (0xffff, 0x320f, 2),
        Known::WriteMsr => (0xffff, 0x300f, 2),
        // VMMCALL; VMCALL is told by its CPU.
        Known::Hypercall => (0xff_ffff, 0xd9_010f, 3),
    };
    if first & mask == code { Some(length) } else { None }
}

/// The handler of a debug exception may access debug registers. The CPU sees to that when it raises one, not when one is injected
/// (SDM Vol. 3C, 27.6.1).
fn open_debug_registers<C: Control>(control: &mut C) {
    let enables = control.get(Register::Dr7);
    control.set(Register::Dr7, enables & !DR7_DETECT);
}

/// The guest's VM does not go on.
#[cold]
fn fault(cause: &'static str, at: Option<Place>) -> Option<Exit> {
    Some(Exit::Stopped(Stop::Fault(Fault { cause, at })))
}

impl<V: Vendor> X86<V> {
    /// The guest takes an exception at the instruction at hand.
    #[cold]
    #[inline(never)]
    fn raise(&self, vcpu: &mut Vcpu<V>, exception: Delivery) -> Option<Exit> {
        use crate::inject::{Combined, combine};
        let combined = match vcpu.control.interrupted() {
            Some(first) => combine(first, exception),
            None => Combined::Deliver(exception),
        };
        match combined {
            Combined::Deliver(delivery) => {
                if delivery.vector == exception_vector::DEBUG {
                    open_debug_registers(&mut vcpu.control);
                }
                vcpu.control.inject(delivery);
                None
            }
            Combined::Shutdown => fault("it faulted while a handler of a double fault was called", None),
        }
    }

    /// #GP(0)
    fn protect(&self, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        self.raise(vcpu, Delivery::exception(exception_vector::PROTECTION, Some(0)))
    }

    /// How long the instruction at hand is, which the CPU has named; `None` if the guest has changed it meanwhile, and
    /// executes it again.
    #[inline(always)]
    fn length(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>, known: Known) -> Option<u8> {
        match self.vendor.instruction_length(&vcpu.control) {
            Some(length) => Some(length),
            None => Self::decoded_length(vcpu, vm, known),
        }
    }

    #[inline(always)]
    fn decoded_length(vcpu: &mut Vcpu<V>, vm: &Vm<Self>, known: Known) -> Option<u8> {
        if let Some(first) = known_code(vcpu).and_then(Code::first)
            && let Some(length) = plain_length(first, known)
        {
            return Some(length);
        }
        Self::walked_length(vcpu, vm, known)
    }

    #[cold]
    #[inline(never)]
    fn walked_length(vcpu: &mut Vcpu<V>, vm: &Vm<Self>, known: Known) -> Option<u8> {
        let guest = View::of(vcpu);
        let size = guest.code_size();
        let fetched = insn::fetch(&guest.paging(), vm.memory(), guest.linear_rip(), guest.is_user()).ok()?;
        let length = insn::known_length(fetched.bytes(), size, known);
        learn_code(vcpu, vm);
        length
    }

    /// Goes on behind an instruction of which nothing is known.
    fn skip_any(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        let length = self.any_length(vcpu, vm)?;
        self.advance(vcpu, length)
    }

    fn any_length(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<u8> {
        if let Some(length) = self.vendor.instruction_length(&vcpu.control) {
            return Some(length);
        }
        let guest = View::of(vcpu);
        crate::mmio::current(&guest, vm.memory()).ok().map(|instruction| instruction.length)
    }

    /// Goes on behind the instruction at hand, which has `length` bytes.
    #[inline(always)]
    fn advance(&self, vcpu: &mut Vcpu<V>, length: u8) -> Option<Exit> {
        let rip = vcpu.control.get(Register::Rip);
        let next = rip.wrapping_add(length.into());
        vcpu.control.set(Register::Rip, next);
        vcpu.control.end_shadow();
        let flags = vcpu.control.get(Register::Rflags);
        if flags & (TRAP | RESUME) != 0 || (rip ^ next) >> 32 != 0 {
            return self.advance_rarely(vcpu, next, flags);
        }
        None
    }

    #[cold]
    #[inline(never)]
    fn advance_rarely(&self, vcpu: &mut Vcpu<V>, next: u64, flags: u64) -> Option<Exit> {
        if View::of(vcpu).code_size() != insn::CodeSize::Bits64 {
            vcpu.control.set(Register::Rip, next & 0xffff_ffff);
        }
        vcpu.control.set(Register::Rflags, flags & !RESUME);
        if flags & TRAP == 0 { None } else { self.single_step(vcpu) }
    }

    /// Goes on behind an element of a string instruction that has more: RIP stays, and there may be an interrupt or a single step in
    /// between, after which no breakpoint at the instruction counts again (SDM Vol. 3B, 17.3.1.1).
    fn advance_element(&self, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        vcpu.control.end_shadow();
        let flags = vcpu.control.get(Register::Rflags);
        if flags & TRAP == 0 {
            return None;
        }
        vcpu.control.set(Register::Rflags, flags | RESUME);
        self.single_step(vcpu)
    }

    #[cold]
    fn single_step(&self, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        let status = vcpu.control.get(Register::Dr6);
        vcpu.control.set(Register::Dr6, status | DR6_STEP);
        self.raise(vcpu, Delivery::exception(exception_vector::DEBUG, None))
    }
}
