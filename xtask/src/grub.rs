//! What GRUB is told: the commands that boot Bulkhead, or a kernel alone.

/// The hypervisor under /boot.
pub(crate) const HYPERVISOR: &str = "bulkhead.elf";
/// The system archive under /boot.
pub(crate) const ARCHIVE: &str = "system.archive";

/// Bulkhead by multiboot2, the archive as its module.
pub(crate) fn boots_bulkhead() -> String {
    format!("multiboot2 /boot/{HYPERVISOR}\nmodule2 /boot/{ARCHIVE} {ARCHIVE}\n")
}

/// A kernel alone: Linux by its own protocol, an ELF program by multiboot. `initrd` says whether there is one.
pub(crate) fn boots_natively(kernel: &[u8], initrd: bool, cmdline: &str) -> String {
    if kernel.starts_with(b"\x7fELF") {
        return format!("multiboot /boot/kernel {cmdline}\n");
    }
    let initrd = if initrd { "initrd /boot/initrd\n" } else { "" };
    format!("linux /boot/kernel {cmdline}\n{initrd}")
}

/// A grub.cfg that does nothing else, and at once; what GRUB itself says comes by the serial line.
pub(crate) fn at_once(commands: &str) -> String {
    format!("set timeout=0\nserial --unit=0 --speed=115200\nterminal_output serial\n{commands}boot\n")
}

/// A menu entry for the grub.cfg of a machine that has other systems too.
pub(crate) fn entry(title: &str) -> String {
    let commands: String = boots_bulkhead().lines().map(|line| format!("    {line}\n")).collect();
    format!("menuentry \"{title}\" {{\n{commands}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_loads_both_files() {
        let expected = "menuentry \"Bulkhead: probe\" {\n    multiboot2 /boot/bulkhead.elf\n    \
            module2 /boot/system.archive system.archive\n}\n";
        assert_eq!(entry("Bulkhead: probe"), expected);
    }

    #[test]
    fn a_kernel_alone_is_booted_by_its_own_protocol() {
        assert_eq!(boots_natively(b"\x7fELF...", false, "a=b"), "multiboot /boot/kernel a=b\n");
        let linux = boots_natively(b"MZ", true, "console=ttyS0");
        assert_eq!(linux, "linux /boot/kernel console=ttyS0\ninitrd /boot/initrd\n");
    }
}
