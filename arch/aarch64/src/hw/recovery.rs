//! What a CPU does after a panic: back to its loop, with an empty stack, if the core finds whom to blame.
//!
//! Nothing is unwound: what was on the stack is lost, with the locks that it held, and the core deals with that.

use super::heap;
use super::start::{current_cpu, power_off, say_directly, stack_top};
use crate::el2::El2;
use crate::machine::MAX_CPUS;
use bulkhead::vcpu::Cpu;
use core::arch::asm;
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use heapless::String;
use spin::Mutex;

/// Longest message that is kept.
const WORDS: usize = 240;

/// One CPU's loop, and why it was left.
struct Kept {
    /// Null before there is a loop.
    cpu: AtomicPtr<Cpu<El2>>,
    /// It is on its way back from a panic: another one before it has arrived is nobody's.
    failed: AtomicBool,
    why: Mutex<String<WORDS>>,
}

static KEPT: [Kept; MAX_CPUS] = [const {
    Kept {
        cpu: AtomicPtr::new(core::ptr::null_mut()),
        failed: AtomicBool::new(false),
        why: Mutex::new(String::new()),
    }
}; MAX_CPUS];

/// Runs `cpu` on this CPU for as long as the machine is on.
pub fn keep_running(cpu: &'static mut Cpu<El2>) -> ! {
    KEPT[current_cpu()].cpu.store(cpu, Ordering::Relaxed);
    enter_loop()
}

/// Leaves what this CPU is doing; somebody else has said why.
pub fn give_up() -> ! {
    let kept = &KEPT[current_cpu()];
    if kept.failed.swap(true, Ordering::Relaxed) {
        stop(format_args!("CPU {} gave up twice", current_cpu()));
    }
    if let Some(mut why) = kept.why.try_lock() {
        why.clear();
    }
    enter_loop()
}

/// We failed ourselves.
pub fn fail(what: fmt::Arguments<'_>) -> ! {
    let kept = &KEPT[current_cpu()];
    if kept.cpu.load(Ordering::Relaxed).is_null() || kept.failed.swap(true, Ordering::Relaxed) {
        stop(what);
    }
    // Only this CPU locks it, and a second failure on the way does not get here.
    if let Some(mut why) = kept.why.try_lock() {
        why.clear();
        // What is longer is cut.
        let _ = why.write_fmt(what);
    }
    enter_loop()
}

fn stop(what: fmt::Arguments<'_>) -> ! {
    say_directly(format_args!("bulkhead: {what}; {} bytes of heap free", heap::free_bytes()));
    power_off()
}

/// Goes to the loop as if for the first time.
fn enter_loop() -> ! {
    // SAFETY: the stack is this CPU's own, nothing on it is ever returned to, and `run_loop` needs no more than a stack.
    unsafe {
        asm!(
            "mov sp, {stack}",
            "mov x29, xzr",
            "mov x30, xzr",
            "b {run}",
            stack = in(reg) stack_top(current_cpu()),
            run = sym run_loop,
            options(noreturn),
        )
    }
}

extern "C" fn run_loop() -> ! {
    let kept = &KEPT[current_cpu()];
    let cpu = kept.cpu.load(Ordering::Relaxed);
    // SAFETY: it comes from the exclusive reference that `keep_running` was given for ever, on this very CPU; whoever used
    // it since was on the stack that is empty now.
    let cpu = unsafe { &mut *cpu };
    if kept.failed.load(Ordering::Relaxed) {
        let why = kept.why.lock();
        if !cpu.recover((!why.is_empty()).then_some(why.as_str())) {
            stop(format_args!("{why}"));
        }
        drop(why);
        kept.failed.store(false, Ordering::Relaxed);
    }
    cpu.run()
}
