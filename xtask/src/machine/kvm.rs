//! Whether this computer's KVM lets a guest use VMX or SVM itself.

use std::path::Path;

/// Where the kernel says so: `Y` or `1` (Documentation/virt/kvm/x86/running-nested-guests.rst).
const NESTED: [&str; 2] =
    ["/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested"];

/// Whether nested virtualisation is offered, and to us.
pub(super) fn is_nested() -> bool {
    let is_open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    is_open && NESTED.iter().any(|path| says_yes(Path::new(path)))
}

fn says_yes(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(['Y', 'y', '1']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_yes_in_two_ways_and_no_in_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nested");
        for (text, expected) in [("Y\n", true), ("1\n", true), ("N\n", false), ("0\n", false), ("", false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(says_yes(&path), expected, "{text:?}");
        }
        assert!(!says_yes(Path::new("/no/such/parameter")));
    }
}
