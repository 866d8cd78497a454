//! A vCPU's control block, on a scripted CPU.

use super::vmcb::{event, intercept, interrupt};
use super::*;
use crate::control::cr4;
use crate::hw::{Leaf, set_cpuid};
use crate::vendor::Delivery;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bulkhead::memory::frames::{Frame, FramePool};
use bulkhead::memory::table::Format as _;

fn control() -> SvmControl {
    set_cpuid(0x8000_0001, 0, Leaf { ecx: 1 << 2, edx: 1 << 26, ..Leaf::default() });
    set_cpuid(0x8000_000a, 0, Leaf { ebx: 16, edx: 1, ..Leaf::default() });
    let svm = Svm::enable().unwrap();
    let frames: Vec<Frame> = (0..4).map(|_| Frame::EMPTY).collect();
    let mut pool = FramePool::new(frames.leak());
    let space = Stage2::new(&mut pool, 46, Npt::LARGEST_LEAF).unwrap();
    let mut control = svm.control(0, VcpuId(0), &space, Box::leak(Box::default()));
    svm.reset(&mut control);
    control
}

#[test]
fn an_interrupt_of_the_8259s_knows_no_task_priority() {
    let mut control = control();
    control.set_task_priority(15);
    control.want_window(Window::Vector(0x41));
    let waiting = control.block.control().interrupt & interrupt::WAITING;
    assert_eq!(waiting, interrupt::REQUESTED | 4 << interrupt::PRIORITY_SHIFT);
    control.want_window(Window::External);
    let waiting = control.block.control().interrupt & interrupt::WAITING;
    assert_eq!(waiting, interrupt::REQUESTED | interrupt::ANY_TASK_PRIORITY);
    control.want_window(Window::Unwanted);
    assert_eq!(control.block.control().interrupt & interrupt::WAITING, 0);
    assert_eq!(control.task_priority(), 15);
}

#[test]
fn machine_checks_are_on_whatever_the_guest_sees() {
    let mut control = control();
    for (written, reads_exit) in [(0, true), (cr4::PAE, true), (cr4::PAE | cr4::MCE, false), (0, true)] {
        control.set(Register::Cr4, written);
        assert_eq!(control.get(Register::Cr4), written);
        assert_eq!(control.block.save().cr4, written | cr4::MCE);
        let intercepted = control.block.control().intercept_control;
        assert_eq!(intercepted & intercept::READ_CR4 != 0, reads_exit);
        assert_ne!(intercepted & intercept::WRITE_CR4, 0);
    }
    control.want_window(Window::Vector(0x41));
    control.want_window(Window::Unwanted);
    assert_ne!(control.block.control().intercept_control & intercept::WRITE_CR4, 0, "windows leave it");
}

#[test]
fn an_exception_in_real_mode_has_no_error_code() {
    let mut control = control();
    control.inject(Delivery::exception(13, Some(0)));
    assert!(control.is_injecting());
    assert_eq!(control.block.control().event_injection & event::HAS_ERROR, 0);
    control.set(Register::Cr0, 1);
    control.inject(Delivery::exception(13, Some(0)));
    assert_ne!(control.block.control().event_injection & event::HAS_ERROR, 0);
}

#[test]
fn an_interrupt_that_is_let_in_stays_until_it_is_taken() {
    let mut control = control();
    control.want_window(Window::Vector(0x41));
    control.inject(Delivery::external(0x52));
    control.want_window(Window::Unwanted);
    let waiting = control.block.control().interrupt & interrupt::WAITING;
    let let_in = interrupt::REQUESTED | interrupt::ANY_TASK_PRIORITY | 0x52 << interrupt::VECTOR_SHIFT;
    assert_eq!(waiting, let_in);
    assert_eq!(control.block.control().event_injection, 0);
    assert_eq!(control.block.control().intercept_first & intercept::VIRTUAL_INTERRUPT, 0);
    assert!(control.is_injecting());
    // The CPU has taken it.
    control.block.set_interrupt(let_in & !interrupt::REQUESTED);
    assert!(!control.is_injecting());
}

#[test]
fn one_that_is_let_in_while_another_waits_is_an_event() {
    let mut control = control();
    control.inject(Delivery::external(0x52));
    control.want_window(Window::Vector(0x81));
    assert_eq!(control.block.control().event_injection, event::VALID | 0x52);
    let waiting = control.block.control().interrupt & interrupt::WAITING;
    assert_eq!(waiting, interrupt::REQUESTED | 8 << interrupt::PRIORITY_SHIFT);
    assert_ne!(control.block.control().intercept_first & intercept::VIRTUAL_INTERRUPT, 0);
    assert!(control.is_injecting());
}
