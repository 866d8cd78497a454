//! What a vendor's extension has to offer to the layer that both share: [`Vendor`], one value per physical CPU, and
//! [`Control`], one per vCPU. [`Event`] is why a guest's turn ended, in no vendor's words.
//!
//! A vendor runs guests and decodes exits; it decides nothing about a guest's machine. Whatever it cannot tell about an
//! instruction (its length, its operands) it leaves open, and the shared layer decodes the instruction.

use crate::hw::{Alarm, Registers};
use crate::msr::Direction;
use bulkhead::arch::{Unsupported, VcpuId};
use bulkhead::memory::table::{Format, Stage2};
use bulkhead_vdev::lapic::Page;
use bulkhead_vdev::{Gpa, Width};

/// A virtualisation extension, switched on on the CPU that this value was made on.
pub trait Vendor: Sized + 'static {
    /// The entries of the second-stage tables.
    type Format: Format;
    /// One vCPU's control block.
    type Control: Control;

    /// What the log calls it.
    const NAME: &'static str;

    /// A page of the VM's memory has to lie where its vCPUs find their local APICs: it stands for them, and the CPU serves
    /// accesses to it, or makes exits of them.
    const NEEDS_APIC_PAGE: bool = false;

    /// In PAE paging the CPU loads the four PDPTEs with control registers; otherwise it reads them from memory each time.
    const LOADS_DIRECTORY_POINTERS: bool = false;

    /// Switches the extension on, on the CPU that executes this. Allocates: boot only.
    ///
    /// # Errors
    /// [`Unsupported`] names what the CPU lacks, or what firmware has switched off.
    fn enable() -> Result<Self, Unsupported>;

    /// Lets guests on this CPU read or write the MSR `number` without an exit. All others come as [`Event::ReadMsr`] and
    /// [`Event::WriteMsr`]. Whatever is let through is the vendor's to keep apart: by the control block, or at load and unload.
    fn permit(&mut self, number: u32, direction: Direction);

    /// How many bits a guest-physical address may have.
    fn address_bits(&self) -> u32;

    /// The highest level at which the second stage may have leaves.
    fn largest_leaf(&self) -> u32 {
        Self::Format::LARGEST_LEAF
    }

    /// Guests can execute INVPCID, where the CPU has it.
    fn has_invpcid(&self) -> bool {
        true
    }

    /// Guests can execute RDTSCP and RDPID, where the CPU has them.
    fn has_rdtscp(&self) -> bool {
        true
    }

    /// The control block of vCPU `id` of VM number `vm`, which reaches `space` and nothing else. `page` holds the registers
    /// of its local APIC. Allocates: boot only.
    fn control(
        &self,
        vm: usize,
        id: VcpuId,
        space: &Stage2<Self::Format>,
        page: &'static Page,
    ) -> Self::Control;

    /// Puts the registers that the control block holds into the state after power-on (SDM Vol. 3A, table 10-1); nothing
    /// waits to be injected, no window is wanted. It is not loaded.
    fn reset(&self, control: &mut Self::Control);

    /// Makes `control` the one that the CPU holds. None was loaded. Translations cached for the vCPU before an
    /// [`Vendor::invalidate`] are forgotten.
    fn load(&self, control: &mut Self::Control);

    /// Takes what the CPU holds of the loaded `control` out of it.
    fn unload(&self, control: &mut Self::Control);

    /// Runs the loaded vCPU until something happens. All sixteen registers are the guest's, before and after. Host interrupts
    /// are off (IF = 0), before and after.
    fn enter(&self, control: &mut Self::Control, registers: &mut Registers) -> Event;

    /// The guest's turn ends by [`Event::Deadline`] once the time stamp counter has passed `at`; `u64::MAX`: never. `false`:
    /// the CPU has no timer of its own for that.
    fn set_deadline(&self, control: &mut Self::Control, at: u64) -> bool {
        let _ = (control, at);
        false
    }

    /// Makes every CPU forget what it cached of `space`, at the latest when it next loads a vCPU of VM number `vm`: all of
    /// them are parked.
    fn invalidate(&self, vm: usize, space: &Stage2<Self::Format>);

    /// How many bytes the instruction has that caused the last event; `None` if the CPU does not tell.
    fn instruction_length(&self, control: &Self::Control) -> Option<u8>;

    /// The bytes at `RIP` when the last event came, if the CPU noted them: as many as it could fetch.
    fn instruction_bytes<'c>(&self, control: &'c Self::Control) -> Option<&'c [u8]> {
        let _ = control;
        None
    }

    /// Whether the CPU itself delivers what stands in the page of the local APIC (virtual-interrupt delivery). Then fixed
    /// interrupts are never injected; [`Control::refresh_page`] hands them over.
    fn delivers_interrupts(&self) -> bool {
        false
    }
}

/// A vCPU's control block. While it is loaded the CPU may hold what it says; the accessors know.
pub trait Control {
    /// A register's value.
    fn get(&self, register: Register) -> u64;

    /// Changes a register. Values that the CPU would refuse to run with were refused before.
    fn set(&mut self, register: Register, value: u64);

    /// A segment register with its hidden part.
    fn segment(&self, name: SegmentName) -> Segment;

    /// Its attributes alone: whoever asks for no more need not read the rest.
    fn attributes(&self, name: SegmentName) -> u16;

    /// Changes a segment register.
    fn set_segment(&mut self, name: SegmentName, segment: Segment);

    /// GDTR or IDTR.
    fn table(&self, name: TableName) -> TableRegister;

    /// Changes GDTR or IDTR.
    fn set_table(&mut self, name: TableName, table: TableRegister);

    /// The current privilege level.
    fn privilege(&self) -> u8;

    /// CR8: the guest's task priority, as it stands while the guest writes CR8 without an exit.
    fn task_priority(&self) -> u8;

    /// Changes CR8.
    fn set_task_priority(&mut self, priority: u8);

    /// Whether an interrupt could be taken before the next instruction: RFLAGS.IF is set, and the instruction before was no
    /// STI and no load of SS.
    fn is_open(&self) -> bool;

    /// The instruction at hand was done: STI and loads of SS before it no longer hold off interrupts.
    fn end_shadow(&mut self);

    /// Whether an NMI could be taken before the next instruction. From the injection of an NMI to the guest's IRET none can.
    fn is_open_for_nmi(&self) -> bool;

    /// The guest takes `delivery` before its next instruction. There is room for one.
    fn inject(&mut self, delivery: Delivery);

    /// Whether something waits to be taken since [`Control::inject`].
    fn is_injecting(&self) -> bool;

    /// What the guest was about to take when its turn ended, so that it has to be injected again. Software interrupts are not
    /// told where the instruction is executed again instead.
    fn interrupted(&self) -> Option<Delivery>;

    /// Asks for [`Event::Window`] as soon as the guest could take such an interrupt.
    fn want_window(&mut self, window: Window);

    /// Asks for [`Event::Window`] as soon as the guest could take an NMI. `false`: the CPU cannot tell, look again soon.
    fn want_nmi_window(&mut self) -> bool;

    /// The four PDPTEs that the CPU holds for PAE paging; `None` where it reads them from memory each time.
    fn directory_pointers(&self) -> Option<[u64; 4]> {
        None
    }

    /// Changes the four PDPTEs that the CPU holds.
    fn set_directory_pointers(&mut self, pointers: [u64; 4]) {
        let _ = pointers;
    }

    /// The guest's own cached translations are to be forgotten: it wrote a control register, and the CPU did not see it.
    fn forget_translations(&mut self) {}

    /// The page of the local APIC has changed: IRR, ISR, TMR and the task priority count as they stand there now. `requested` is
    /// the highest vector that was added since the last call, or 0; `levels` the vectors whose ends come as [`Event::PageEnd`],
    /// if those are others now. Only where [`Vendor::delivers_interrupts`].
    fn refresh_page(&mut self, requested: u8, levels: Option<[u64; 4]>) {
        let _ = (requested, levels);
    }

    /// Where the guest finds its local APIC. Only needed where the CPU serves the page.
    fn set_page_mode(&mut self, mode: PageMode) {
        let _ = mode;
    }
}

/// What a guest is to become open for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// Nothing waits.
    Unwanted,
    /// An interrupt of the local APIC with this vector: RFLAGS.IF and the task priority have to let it in.
    Vector(u8),
    /// An interrupt of the 8259s: the task priority does not matter.
    External,
}

/// Registers that a control block holds besides segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// The next instruction.
    Rip,
    /// RFLAGS.
    Rflags,
    /// CR0, as the guest sees it.
    Cr0,
    /// The address of the last page fault.
    Cr2,
    /// CR3.
    Cr3,
    /// CR4, as the guest sees it.
    Cr4,
    /// EFER, as the guest sees it.
    Efer,
    /// DR6.
    Dr6,
    /// DR7.
    Dr7,
    /// The page attribute table (MSR 0x277).
    Pat,
    /// What is added to the host's time stamp counter.
    TscOffset,
}

/// The segment registers; the first six as instructions number them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentName {
    /// ES
    Es,
    /// CS
    Cs,
    /// SS
    Ss,
    /// DS
    Ds,
    /// FS
    Fs,
    /// GS
    Gs,
    /// LDTR
    Ldtr,
    /// TR
    Tr,
}

impl SegmentName {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Bits of the descriptor, packed: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11. P clear: not usable.
    pub attributes: u16,
    /// In bytes, whatever G says.
    pub limit: u32,
    /// The linear address of the first byte.
    pub base: u64,
}

impl Segment {
    /// P
    pub const PRESENT: u16 = 1 << 7;
    /// L: 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// D/B: 32-bit code or stack.
    pub const BIG: u16 = 1 << 10;
    /// G
    pub const GRANULAR: u16 = 1 << 11;
}

/// GDTR and IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableName {
    /// GDTR
    Global,
    /// IDTR
    Interrupt,
}

/// Where a descriptor table lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableRegister {
    /// Linear.
    pub base: u64,
    /// The last byte's offset.
    pub limit: u16,
}

/// How a guest finds its local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageMode {
    /// It is switched off.
    Off,
    /// A page of memory.
    XApic,
    /// MSRs.
    X2Apic,
}

/// Something for a guest to take before its next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// What it is.
    pub kind: DeliveryKind,
    /// Its vector; 2 for an NMI.
    pub vector: u8,
    /// What an exception pushes besides.
    pub error: Option<u32>,
    /// The bytes of the instruction behind a software interrupt or exception; else 0.
    pub length: u8,
}

/// Kinds of [`Delivery`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryKind {
    /// From an interrupt controller.
    External,
    /// The interrupt that cannot be masked.
    Nmi,
    /// The CPU's own.
    Exception,
    /// `INT n`
    SoftwareInterrupt,
    /// `INT3`, `INTO`
    SoftwareException,
    /// `INT1`
    PrivilegedException,
}

impl Delivery {
    /// From an interrupt controller.
    #[must_use]
    pub const fn external(vector: u8) -> Self {
        Self { kind: DeliveryKind::External, vector, error: None, length: 0 }
    }

    /// An NMI.
    #[must_use]
    pub const fn nmi() -> Self {
        Self { kind: DeliveryKind::Nmi, vector: 2, error: None, length: 0 }
    }

    /// An exception.
    #[must_use]
    pub const fn exception(vector: u8, error: Option<u32>) -> Self {
        Self { kind: DeliveryKind::Exception, vector, error, length: 0 }
    }
}

/// Why a guest's turn ended. Instructions were not executed: `RIP` is still at them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A physical interrupt: its vector if the CPU has acknowledged it; else it still waits.
    Interrupt(Option<u8>),
    /// Something that was only the host's, and is over.
    Host,
    /// The machine reports an error.
    Alarm(Alarm),
    /// `CPUID`
    Cpuid,
    /// `HLT`
    Halt,
    /// The vendor's call to a hypervisor.
    Hypercall,
    /// `RDMSR` of what does not go to the CPU itself.
    ReadMsr,
    /// `WRMSR` of the same.
    WriteMsr,
    /// `IN`, `OUT`, `INS`, `OUTS`
    Port(PortAccess),
    /// An access to memory that the second stage does not map.
    Memory(MemoryAccess),
    /// A control register that the vendor does not leave to the guest.
    Control(ControlAccess),
    /// `XSETBV`
    Xsetbv,
    /// `WBINVD`, `INVD`: nothing to do but to go on behind it.
    CacheFlush,
    /// `RDPMC`
    ReadCounter,
    /// An instruction that guests do not have.
    Forbidden,
    /// What [`Control::want_window`] or [`Control::want_nmi_window`] asked for.
    Window,
    /// An exception that must not loop unseen, as the guest is to take it. DR6 and CR2 are as its handler has to find them.
    Exception(Delivery),
    /// A task switch that the CPU does not perform.
    TaskSwitch(TaskSwitch),
    /// The guest wrote its APIC's page (at 16 times this), and the value stands there.
    PageWrite(u16),
    /// The CPU has ended the interrupt with this vector, and an I/O APIC may have to know.
    PageEnd(u8),
    /// The vendor's own timer.
    Deadline,
    /// A fault in the delivery of a double fault.
    Shutdown,
    /// The CPU refused to run the guest: what is wrong with its state, as a sentence.
    Refused(&'static str),
}

/// `IN`, `OUT`, `INS`, `OUTS`: bits 31:16 are the first port; 1:0 the width as [`Width`] numbers it, double excluded; bit 2 is
/// set for what goes out of the CPU; bit 3 for the string instructions, where memory is the other side and operands have to
/// be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAccess(pub u32);

impl PortAccess {
    /// Out of the CPU.
    pub const WRITE: u32 = 1 << 2;
    /// `INS`, `OUTS`.
    pub const STRING: u32 = 1 << 3;
    /// Bits of the width.
    pub const WIDTH: u32 = 3;
    /// Where the port begins.
    pub const PORT_SHIFT: u32 = 16;

    /// An access of `width` to `port`; `how` is [`PortAccess::WRITE`] and [`PortAccess::STRING`] as they apply.
    #[must_use]
    pub const fn new(port: u16, width: Width, how: u32) -> Self {
        Self((port as u32) << Self::PORT_SHIFT | width as u32 & Self::WIDTH | how)
    }

    /// The first port.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> Self::PORT_SHIFT) as u16
    }

    /// Byte, half or word.
    #[inline(always)]
    #[must_use]
    pub const fn width(self) -> Width {
        match self.0 & Self::WIDTH {
            0 => Width::Byte,
            1 => Width::Half,
            _ => Width::Word,
        }
    }

    /// Whether it goes out of the CPU.
    #[inline(always)]
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Whether memory is the other side.
    #[inline(always)]
    #[must_use]
    pub const fn is_string(self) -> bool {
        self.0 & Self::STRING != 0
    }
}

/// An access to memory that the second stage does not map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryAccess {
    /// Where.
    pub at: Gpa,
    /// A store.
    pub is_write: bool,
    /// An instruction fetch.
    pub is_fetch: bool,
    /// The CPU's walk of the guest's own tables, not the access itself.
    pub is_walk: bool,
}

/// An instruction that reads or writes a control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlAccess {
    /// `MOV CRn, register`
    Write {
        /// n
        control: u8,
        /// As instructions number them.
        register: u8,
    },
    /// `MOV register, CRn`
    Read {
        /// n
        control: u8,
        /// As instructions number them.
        register: u8,
    },
    /// `CLTS`
    ClearTaskSwitched,
    /// `LMSW` of this value.
    LoadStatusWord(u16),
    /// One of these, or a move of another kind: the CPU does not tell.
    Undecoded,
}

/// A task switch that the CPU does not perform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskSwitch {
    /// The new task's selector.
    pub selector: u16,
    /// What asked for it.
    pub source: TaskSwitchSource,
}

/// What asks for a task switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskSwitchSource {
    /// `CALL`
    Call,
    /// `IRET`
    Return,
    /// `JMP`
    Jump,
    /// A task gate in the IDT.
    Gate,
}
