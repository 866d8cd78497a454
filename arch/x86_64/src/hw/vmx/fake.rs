//! A scripted VMX for tests on the host: fields hold what was written, and an entry is followed by the exit that a test
//! queued.

use super::LAUNCHED;
use crate::hw::Registers;
use crate::vmx::vmcs::{Encoded, Field};
use bulkhead::memory::Hpa;
use bulkhead_vdev::Gpa;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::vec::Vec;

#[derive(Default)]
struct Cpu {
    current: u64,
    fields: HashMap<(u64, u32), u64>,
    exits: VecDeque<Vec<(Field, u64)>>,
    invalidations: Vec<Invalidation>,
    launched: HashSet<u64>,
}

/// What the CPU was told to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// INVEPT
    Space,
    /// INVVPID
    Translations,
}

thread_local! {
    static CPU: RefCell<Cpu> = RefCell::new(Cpu { current: u64::MAX, ..Cpu::default() });
}

/// The next entry is followed by an exit that leaves these fields.
pub fn script_exit(fields: &[(Field, u64)]) {
    CPU.with_borrow_mut(|cpu| cpu.exits.push_back(fields.to_vec()));
}

/// What the current VMCS holds.
#[must_use]
pub fn written(field: impl Encoded) -> u64 {
    vmread(field.encoding())
}

pub(super) fn vmxon(_region: u64) -> bool {
    true
}

pub(super) fn vmclear(region: u64) -> bool {
    CPU.with_borrow_mut(|cpu| {
        cpu.launched.remove(&region);
        if cpu.current == region {
            cpu.current = u64::MAX;
        }
    });
    true
}

pub(super) fn vmptrld(region: u64) -> bool {
    CPU.with_borrow_mut(|cpu| cpu.current = region);
    true
}

pub(super) fn vmptrst() -> u64 {
    CPU.with_borrow(|cpu| cpu.current)
}

pub(super) fn vmread(field: u32) -> u64 {
    CPU.with_borrow(|cpu| cpu.fields.get(&(cpu.current, field)).copied().unwrap_or(0))
}

pub(super) fn vmwrite(field: u32, value: u64) {
    CPU.with_borrow_mut(|cpu| {
        let current = cpu.current;
        cpu.fields.insert((current, field), value);
    });
}

/// A VMCS that is not launched is not resumed, and the other way round; it is launched once its guest runs.
pub(super) fn enter(_registers: &mut Registers, _host_stack: &mut u64, how: u32) -> bool {
    const ENTRY_FAILED: u64 = 1 << 31;
    let exit = CPU.with_borrow_mut(|cpu| {
        let is_right = cpu.launched.contains(&cpu.current) == (how & LAUNCHED != 0);
        if is_right { cpu.exits.pop_front() } else { None }
    });
    for (field, value) in exit.iter().flatten() {
        vmwrite(field.encoding(), *value);
    }
    if exit.is_some() && vmread(Field::EXIT_REASON.encoding()) & ENTRY_FAILED == 0 {
        CPU.with_borrow_mut(|cpu| cpu.launched.insert(cpu.current));
    }
    exit.is_some()
}

pub(super) fn exit_address() -> u64 {
    0
}

pub(super) fn invept(_kind: u64, _pointer: u64) {
    CPU.with_borrow_mut(|cpu| cpu.invalidations.push(Invalidation::Space));
}

pub(super) fn invvpid(_kind: u64, _vpid: u64) {
    CPU.with_borrow_mut(|cpu| cpu.invalidations.push(Invalidation::Translations));
}

/// What the CPU was told to forget since this was asked last.
#[must_use]
pub fn take_invalidations() -> Vec<Invalidation> {
    CPU.with_borrow_mut(|cpu| std::mem::take(&mut cpu.invalidations))
}

pub(super) fn translate(_root: Hpa, _at: Gpa) -> Option<Hpa> {
    Some(Hpa(0xa_0000))
}
