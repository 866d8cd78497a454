//! The initial RAM disk of a test Linux: busybox, and just enough around it for a shell on the console.
//!
//! Written in the kernel's own format ("newc" cpio, Documentation/driver-api/early-userspace/buffer-format.rst) and
//! compressed lightly. Equal input gives equal bytes: no time, owner or host path gets in.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const TEXT: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

const DIRECTORIES: [&str; 9] = ["bin", "dev", "etc", "etc/init.d", "proc", "root", "run", "sys", "tmp"];

/// `cttyhack` gives the shell a controlling terminal, so that job control and Ctrl-C work; `respawn` brings the shell back
/// after `exit`.
const INITTAB: &str =
    "::sysinit:/etc/init.d/rcS\n::respawn:/bin/cttyhack /bin/sh -l\n::ctrlaltdel:/bin/reboot -f\n";

const START: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname bulkhead
echo \"init: up $(cat /proc/uptime)\"
";

/// Nothing needs to be unmounted or synchronised here: power off and restart at once. This busybox cannot look up the home
/// folder for its prompt's `\w`, so `cd` keeps the prompt's text.
const PROFILE: &str = r#"export HOME=/root PATH=/bin
alias poweroff='poweroff -f' reboot='reboot -f' halt='halt -f'
cd() {
    command cd "$@" || return
    case "$PWD" in
        "$HOME"*) place="~${PWD#$HOME}" ;;
        *) place="$PWD" ;;
    esac
}
cd
PS1='$place # '
"#;

/// Programs that start under their own name before busybox has installed the rest.
const APPLETS: [&str; 7] = ["sh", "mount", "hostname", "echo", "cat", "cttyhack", "init"];

/// The whole, compressed, around a statically linked busybox.
pub(crate) fn build(busybox: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&archive(busybox))?;
    Ok(encoder.finish()?)
}

/// Everything besides busybox that decides what [`build`] returns.
pub(crate) fn recipe() -> String {
    format!("{DIRECTORIES:?}{APPLETS:?}{INITTAB}{START}{PROFILE}{}", script())
}

/// The start script links busybox's remaining applets first.
fn script() -> String {
    START.replacen('\n', "\n/bin/busybox --install -s /bin\n", 1)
}

fn archive(busybox: &[u8]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for name in DIRECTORIES {
        cpio.entry(name, DIRECTORY, (0, 0), b"");
    }
    // The kernel opens it before devtmpfs is there (console 5:1).
    cpio.entry("dev/console", CHARACTER_DEVICE, (5, 1), b"");
    cpio.entry("bin/busybox", PROGRAM, (0, 0), busybox);
    for applet in APPLETS {
        cpio.entry(&format!("bin/{applet}"), LINK, (0, 0), b"busybox");
    }
    cpio.entry("init", LINK, (0, 0), b"bin/busybox");
    cpio.entry("etc/inittab", TEXT, (0, 0), INITTAB.as_bytes());
    cpio.entry("etc/profile", TEXT, (0, 0), PROFILE.as_bytes());
    cpio.entry("etc/init.d/rcS", PROGRAM, (0, 0), script().as_bytes());
    cpio.finish()
}

/// A writer of the format: each entry is a header of hexadecimal fields, a name and the content, padded to 4 bytes.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a RAM disk's file is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (major, minor), special (major, minor), name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the format back: name, mode, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            let offset = total - bytes.len();
            let start = (offset + 110 + name_size).next_multiple_of(4) - offset;
            entries.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(offset + start + size).next_multiple_of(4) - offset..];
        }
    }

    #[test]
    fn what_is_packed_can_be_read_back() {
        let entries = read(&archive(b"a program of odd length"));
        let find = |name: &str| entries.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(find("bin/busybox").2, b"a program of odd length");
        assert_eq!(find("init").2, b"bin/busybox");
        assert_eq!(find("init").1, LINK);
        assert!(
            String::from_utf8_lossy(&find("etc/init.d/rcS").2)
                .starts_with("#!/bin/sh\n/bin/busybox --install")
        );
    }

    #[test]
    fn a_folder_comes_before_what_lies_in_it() {
        let entries = read(&archive(b""));
        for (index, (name, _, _)) in entries.iter().enumerate() {
            if let Some((folder, _)) = name.rsplit_once('/') {
                assert!(entries[..index].iter().any(|entry| entry.0 == folder), "{name}");
            }
        }
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        assert_eq!(build(b"busybox").unwrap(), build(b"busybox").unwrap());
    }
}
