//! From a folder with a `system.toml` to the system that Bulkhead boots, or to mistakes shown at their lines.
//!
//! The rules of a system are the core's ([`bulkhead::config::check`]); what is added here is what only the host can see:
//! the file's text, and the kernels that it names.

mod files;
pub(crate) mod tables;

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::bail;
use bulkhead::config::check::{Limits, MAX_CPUS, check as check_rules};
use bulkhead::config::problem::{Field, Place, Problem};
use bulkhead::config::{Architecture, FileId, Kernel, KernelFormat, Size, System, Vm};
use toml::Spanned;

use crate::problem::{Mistake, Reported};
use crate::{build, payload};
use files::Files;
use tables::{KernelTable, SystemTable, VmTable};

const FILE_NAME: &str = "system.toml";

/// A system that passed every check, with the content of its files.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The system.
    pub(crate) system: System,
    /// The files, by [`FileId`]: what `system.toml` calls each, and its content.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The name of the folder it was read from.
    pub(crate) name: String,
}

/// Finds the file that a name such as `debian:linux-cloud` stands for.
type Resolve = dyn Fn(&str, Architecture) -> anyhow::Result<PathBuf>;

/// Reads and checks the system in `folder`, and gets the files that it names.
pub(crate) fn load(folder: &Path) -> Result<Loaded, Reported> {
    load_with(folder, &resolve)
}

/// Reads and checks the system in `folder` and prints what it is.
pub(crate) fn check(folder: &Path) -> anyhow::Result<()> {
    println!("{}", summary(&load(folder)?));
    Ok(())
}

/// One line: what the system is made of.
pub(crate) fn summary(loaded: &Loaded) -> String {
    let vms = &loaded.system.vms;
    let vcpus = vms.iter().map(|vm| u64::from(vm.vcpus)).sum();
    let ram = Size(vms.iter().map(|vm| vm.ram_bytes).sum());
    let bytes = rounded(loaded.files.iter().map(|(_, content)| content.len() as u64).sum());
    let [vms, vcpus, files] =
        [(vms.len() as u64, "VM"), (vcpus, "vCPU"), (loaded.files.len() as u64, "file")].map(counted);
    format!("{}: ok: {vms}, {vcpus}, {ram} of RAM, {files} ({bytes})", loaded.name)
}

/// A file's size, which is seldom a whole number of anything.
fn rounded(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        0..MIB => Size(bytes).to_string(),
        _ => format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB),
    }
}

fn counted((number, what): (u64, &str)) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn resolve(name: &str, architecture: Architecture) -> anyhow::Result<PathBuf> {
    match name.split_once(':') {
        Some(("debian", _)) => payload::resolve(name, architecture),
        Some(("guest", guest)) => build::guest(guest),
        _ => bail!("`{name}` is neither a path nor a `debian:` or `guest:` name"),
    }
}

fn load_with(folder: &Path, resolve: &Resolve) -> Result<Loaded, Reported> {
    let path = folder.join(FILE_NAME);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Reported::whole(&path, format_args!("cannot be read: {error}; name a folder with a {FILE_NAME}"))
    })?;
    let report = |mistakes| Reported::new(&path, &text, mistakes);
    let tables = tables::parse(&text).map_err(|mistake| report(vec![mistake]))?;
    let (system, files) = compile(&tables, folder, resolve).map_err(report)?;
    let name = std::path::absolute(folder)
        .ok()
        .as_deref()
        .and_then(Path::file_name)
        .map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Loaded { system, files, name })
}

type Compiled = (System, Vec<(String, Vec<u8>)>);

fn compile(tables: &SystemTable, folder: &Path, resolve: &Resolve) -> Result<Compiled, Vec<Mistake>> {
    let arch = Architecture::from(*tables.arch.get_ref());
    let mut files = Files::new(folder, arch, resolve);
    let mut mistakes = Vec::new();
    let vms = tables.vm.iter().map(|vm| compile_vm(vm.get_ref(), &mut files, &mut mistakes)).collect();
    let system = System { arch, vms };
    let are_files_known = mistakes.is_empty();
    let file_bytes = files.lengths();
    if let Err(problems) = check_rules(&system, &Limits { cpus: MAX_CPUS, file_bytes: &file_bytes }) {
        let sure = problems.iter().filter(|problem| are_files_known || !is_about_files(problem));
        mistakes.extend(sure.map(|problem| at_its_line(problem, tables)));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let mistakes = places(tables, &system, &files);
    if mistakes.is_empty() { Ok((system, files.into_content())) } else { Err(mistakes) }
}

fn compile_vm(vm: &VmTable, files: &mut Files<'_>, mistakes: &mut Vec<Mistake>) -> Vm {
    Vm {
        name: vm.name.get_ref().clone(),
        vcpus: *vm.vcpus.get_ref(),
        cpus: vm.cpus.iter().map(|cpu| *cpu.get_ref()).collect(),
        ram_bytes: vm.ram.get_ref().0,
        kernel: compile_kernel(&vm.kernel, files, mistakes),
        on_fault: vm.on_fault.into(),
        unmapped: vm.unmapped.into(),
        hypervisor_leaf: vm.hypervisor_leaf.as_ref().is_some_and(|leaf| *leaf.get_ref()),
        privileges: vm.privileges.iter().copied().map(Into::into).collect(),
    }
}

fn compile_kernel(
    table: &Spanned<KernelTable>,
    files: &mut Files<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Kernel {
    let mut file = |name: &Spanned<String>| {
        files.add(name).unwrap_or_else(|mistake| {
            mistakes.push(mistake);
            Files::UNKNOWN
        })
    };
    let kernel = table.get_ref();
    let id = file(&kernel.file);
    let initrd = kernel.initrd.as_ref().map(&mut file);
    let format = compile_format(table, id, files).unwrap_or_else(|mistake| {
        mistakes.push(mistake);
        // One that no rule refuses, so that nothing more is said about it.
        KernelFormat::Flat { load: 0, entry: 0 }
    });
    let cmdline = kernel.cmdline.as_ref().map(|cmdline| cmdline.get_ref().clone()).unwrap_or_default();
    Kernel { format, file: id, initrd, cmdline }
}

fn compile_format(
    table: &Spanned<KernelTable>,
    id: FileId,
    files: &mut Files<'_>,
) -> Result<KernelFormat, Mistake> {
    let kernel = table.get_ref();
    if let Some(format) = &kernel.format {
        let Some(load) = &kernel.load else {
            return Err(Mistake::new(
                format.span(),
                "a flat kernel does not say where it belongs",
                format_args!("add `load = {}` or another address of the VM's RAM", files.usual_load()),
            ));
        };
        let entry = kernel.entry.as_ref().unwrap_or(load);
        return Ok(KernelFormat::Flat { load: *load.get_ref(), entry: *entry.get_ref() });
    }
    if let Some(address) = kernel.load.as_ref().or(kernel.entry.as_ref()) {
        return Err(Mistake::new(
            address.span(),
            "only a flat kernel has an address",
            "leave it out or add `format = \"flat\"`",
        ));
    }
    files.recognise(id, kernel.file.span())
}

/// Whether a problem may only come from a file that could not be got.
fn is_about_files(problem: &Problem) -> bool {
    use Field::{Entry, Initrd, KernelFile, Load};
    matches!(problem.place, Place::Vm(_, KernelFile | Initrd | Load | Entry))
}

fn at_its_line(problem: &Problem, tables: &SystemTable) -> Mistake {
    Mistake::new(span(problem.place, tables), problem.what, problem.what.mend())
}

/// The part of the text that describes a part of the system.
fn span(place: Place, tables: &SystemTable) -> Range<usize> {
    let Place::Vm(index, field) = place else { return tables.arch.span() };
    let Some(vm) = tables.vm.get(index).map(Spanned::get_ref) else { return tables.arch.span() };
    let kernel = vm.kernel.get_ref();
    let optional = match field {
        Field::Name => Some(vm.name.span()),
        Field::Vcpus => Some(vm.vcpus.span()),
        Field::Cpu(at) => vm.cpus.get(at).map(Spanned::span),
        Field::Ram => Some(vm.ram.span()),
        Field::KernelFile => Some(kernel.file.span()),
        Field::Initrd => kernel.initrd.as_ref().map(Spanned::span),
        Field::Cmdline => kernel.cmdline.as_ref().map(Spanned::span),
        Field::Load => kernel.load.as_ref().map(Spanned::span),
        Field::Entry => kernel.entry.as_ref().or(kernel.load.as_ref()).map(Spanned::span),
        Field::HypervisorLeaf => vm.hypervisor_leaf.as_ref().map(Spanned::span),
    };
    optional.unwrap_or_else(|| vm.kernel.span())
}

/// VMs whose files find no place in their RAM.
fn places(tables: &SystemTable, system: &System, files: &Files<'_>) -> Vec<Mistake> {
    let misfit = |(table, vm): (&Spanned<VmTable>, &Vm)| {
        files.misfit(vm).map(|line| Mistake::told(table.get_ref().ram.span(), line))
    };
    tables.vm.iter().zip(&system.vms).filter_map(misfit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    const KERNEL_BYTES: usize = 5000;

    fn arm64_image(image_size: u64) -> Vec<u8> {
        let mut bytes = vec![0; KERNEL_BYTES];
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24] = 0b1010;
        bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
        bytes
    }

    /// A Linux kernel for PCs that wants to be at 16 MiB.
    fn bz_image(init_size: u32) -> Vec<u8> {
        let mut bytes = vec![0; KERNEL_BYTES];
        bytes[0x1f1] = 1;
        bytes[0x1f4..0x1f8].copy_from_slice(&16_u32.to_le_bytes());
        bytes[0x201] = 0x66;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        bytes[0x211] = 1;
        bytes[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        bytes[0x258..0x260].copy_from_slice(&(16_u64 << 20).to_le_bytes());
        bytes[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        bytes
    }

    /// A multiboot kernel whose header has addresses.
    fn multiboot() -> Vec<u8> {
        let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
        let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
        let at = 0x10_0000_u32;
        [magic, flags, checksum, at, at, 0, 0, at].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Loads a system whose one VM has these keys; `Image`, `bzImage`, `initrd` and `noise` are files beside it.
    fn load_vm(keys: &str) -> Result<Loaded, String> {
        load_text(&format!("arch = \"aarch64\"\n[[vm]]\n{keys}\n"))
    }

    fn load_text(text: &str) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 7] = [
            ("bzImage", &bz_image(8 << 20)),
            ("multiboot", &multiboot()),
            (FILE_NAME, text.as_bytes()),
            ("Image", &arm64_image(16 << 20)),
            ("initrd", b"070701"),
            ("noise", &[0x1f, 0x8b, 8, 0, 0, 0]),
            ("empty", b""),
        ];
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let image = folder.path().join("Image");
        let resolve = move |name: &str, _| match name {
            "debian:linux" => Ok(image.clone()),
            _ => bail!("no payload is called `{name}`: choose debian:linux"),
        };
        let place = format!("{}/", folder.path().display());
        load_with(folder.path(), &resolve).map_err(|error| error.to_string().replace(&place, ""))
    }

    const ONE: &str = "name = \"one\"\nvcpus = 2\nram = \"64 MiB\"\n";

    fn said(kernel: &str) -> String {
        load_vm(&format!("{ONE}kernel = {kernel}")).unwrap_err()
    }

    #[test]
    fn a_system_is_loaded_with_its_files() {
        let keys = format!(
            "{ONE}kernel = {{ file = \"Image\", initrd = \"initrd\", cmdline = \"quiet\" }}\ncpus = [1]"
        );
        let loaded = load_vm(&keys).unwrap();
        let vm = &loaded.system.vms[0];
        assert_eq!((vm.name.as_str(), vm.vcpus, vm.ram_bytes), ("one", 2, 64 << 20));
        assert_eq!(vm.cpus, [1]);
        assert_eq!(vm.kernel.format, KernelFormat::Arm64Image);
        assert_eq!((vm.kernel.file, vm.kernel.initrd), (FileId(0), Some(FileId(1))));
        assert_eq!(vm.kernel.cmdline, "quiet");
        assert_eq!(loaded.files[1], ("initrd".to_owned(), b"070701".to_vec()));
        assert!(
            summary(&loaded).ends_with(": ok: 1 VM, 2 vCPUs, 64 MiB of RAM, 2 files (5006 bytes)"),
            "{}",
            summary(&loaded)
        );
        assert_eq!([(1 << 20) - 1, 5 << 19].map(rounded), ["1048575 bytes", "2.5 MiB"]);
    }

    #[test]
    fn a_file_that_two_vms_boot_is_packed_once() {
        let vm = |name: &str| {
            format!(
                "[[vm]]\nname = \"{name}\"\nvcpus = 1\nram = \"64 MiB\"\nkernel = {{ file = \"debian:linux\" }}\n"
            )
        };
        let loaded = load_text(&format!("arch = \"aarch64\"\n{}{}", vm("one"), vm("two"))).unwrap();
        assert_eq!(loaded.files.len(), 1);
        assert_eq!(loaded.system.vms[1].kernel.file, FileId(0));
    }

    #[test]
    fn a_flat_kernel_is_taken_as_it_is() {
        let keys = format!(
            "{ONE}kernel = {{ file = \"noise\", format = \"flat\", load = 0x4008_0000, entry = 0x4008_0004 }}"
        );
        let format = load_vm(&keys).unwrap().system.vms[0].kernel.format;
        assert_eq!(format, KernelFormat::Flat { load: 0x4008_0000, entry: 0x4008_0004 });
        let without_entry =
            load_vm(&keys.replace(", entry = 0x4008_0004", "")).unwrap().system.vms[0].kernel.format;
        assert_eq!(without_entry, KernelFormat::Flat { load: 0x4008_0000, entry: 0x4008_0000 });
    }

    #[test]
    fn addresses_and_the_flat_format_belong_together() {
        let line = said("{ file = \"noise\", format = \"flat\" }");
        assert!(
            line.starts_with("system.toml:6:37: a flat kernel does not say where it belongs; add"),
            "{line}"
        );
        let line = said("{ file = \"Image\", load = 0x4000_0000 }");
        assert!(
            line.starts_with("system.toml:6:35: only a flat kernel has an address; leave it out"),
            "{line}"
        );
    }

    #[test]
    fn a_missing_file_is_told_at_its_line() {
        let line = said("{ file = \"Imago\" }");
        assert!(
            line.starts_with("system.toml:6:19: the file `Imago` cannot be read: No such file"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
        let line = said("{ file = \"Image\", initrd = \"debian:windows\" }");
        assert_eq!(line, "system.toml:6:37: no payload is called `debian:windows`: choose debian:linux");
    }

    #[test]
    fn a_kernel_that_is_none_is_told_at_its_line() {
        let line = said("{ file = \"noise\" }");
        assert!(line.starts_with("system.toml:6:19: ") && line.contains("gzip"), "{line}");
        assert!(said("{ file = \"empty\" }").starts_with("system.toml:6:19: "));
        assert_eq!(
            said("{ file = \"Image\", initrd = \"empty\" }"),
            "system.toml:6:37: the file is empty; name another file"
        );
    }

    #[test]
    fn the_usual_mistakes_are_one_line_each_with_place_and_mend() {
        const GOOD: &str =
            "name = \"one\"\nvcpus = 2\nram = \"64 MiB\"\nkernel = { file = \"Image\" }\nunmapped = \"stop\"";
        let flat = |load: &str| format!("\"noise\", format = \"flat\", load = {load} }}");
        for (part, instead, place, mend) in [
            ("unmapped", "unmaped", "7:1: unknown key `unmaped`", "known here: "),
            ("64 MiB", "8 MiB", "5:7: the kernel takes 16 MiB", "raise `ram` or change "),
            ("\"Image\" }", &flat("0x900_0000"), "6:52: 6 bytes at 0x9000000", "choose another load address"),
            ("\"Image\" }", &flat("0x43ff_ffff"), "6:52: 6 bytes at 0x43ffffff", "or give the VM more RAM"),
            ("Image", "Imago", "6:19: the file `Imago`", "paths start at "),
            ("Image", "bzImage", "6:19: `bzImage`: an x86 kernel", "use a kernel for arm64"),
            ("vcpus = 2", "vcpus = 17", "4:9: 17 vCPUs", "give the VM 1 to 16"),
            ("name = \"one\"\n", "", "2:1: the key `name` is missing", "add `name = ...`"),
        ] {
            let line = load_vm(&GOOD.replace(part, instead)).unwrap_err();
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(line.starts_with(&format!("system.toml:{place}")), "{line}");
            assert!(line.split_once("; ").is_some_and(|(_, said)| said.contains(mend)), "{line}");
        }
    }

    #[test]
    fn the_rules_of_the_core_are_shown_at_their_lines() {
        let keys = "name = \"log\"\nvcpus = 0\ncpus = [0, 0]\nram = \"3 KiB\"\nkernel = { file = \"Imago\" }";
        let text = load_vm(keys).unwrap_err();
        let places: Vec<String> =
            text.lines().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect();
        assert_eq!(
            places,
            [
                "system.toml:3:8: the name `log` is Bulkhead's own; choose another name",
                "system.toml:4:9: 0 vCPUs cannot run anything; give the VM 1 to 16",
                "system.toml:5:12: CPU 0 is listed twice; list it once",
                "system.toml:6:7: 3 KiB of RAM is not a multiple of 2 MiB; write \"2 MiB\"",
                "system.toml:7:19: the file `Imago` cannot be read",
            ]
        );
    }

    #[test]
    fn a_system_without_vm_is_refused() {
        let line = load_text("arch = \"aarch64\"\n").unwrap_err();
        assert_eq!(line, "system.toml:1:8: the system has no VM; describe one in a [[vm]] table");
    }

    /// Loads a system for a PC whose one VM has this kernel and these other keys.
    fn load_pc(kernel: &str, keys: &str) -> Result<Loaded, String> {
        load_text(&format!("arch = \"x86_64\"\n[[vm]]\n{ONE}kernel = {kernel}\n{keys}\n"))
    }

    #[test]
    fn a_kernel_for_a_pc_is_recognised_by_its_content() {
        for (file, format) in [("bzImage", KernelFormat::BzImage), ("multiboot", KernelFormat::Multiboot)] {
            let loaded = load_pc(&format!("{{ file = \"{file}\", initrd = \"initrd\" }}"), "").unwrap();
            assert_eq!(loaded.system.arch, Architecture::X86_64);
            assert_eq!(loaded.system.vms[0].kernel.format, format);
            assert!(!loaded.system.vms[0].hypervisor_leaf);
        }
        let flat = "{ file = \"noise\", format = \"flat\", load = 0x7000 }";
        let vm = &load_pc(flat, "hypervisor-leaf = true").unwrap().system.vms[0];
        assert_eq!(vm.kernel.format, KernelFormat::Flat { load: 0x7000, entry: 0x7000 });
        assert!(vm.hypervisor_leaf);
    }

    #[test]
    fn what_a_pc_does_not_boot_is_told_at_its_line() {
        let said = |file: &str| load_pc(&format!("{{ file = \"{file}\" }}"), "").unwrap_err();
        let line = said("Image");
        assert_eq!(
            line,
            "system.toml:6:19: `Image`: an arm64 Image, not a kernel that a PC boots; use a kernel for x86"
        );
        assert!(said("noise").contains("unpack it with gunzip"));
        let line = load_pc("{ file = \"noise\", format = \"flat\" }", "").unwrap_err();
        assert!(line.ends_with("add `load = 0x10_0000` or another address of the VM's RAM"), "{line}");
    }

    #[test]
    fn a_pcs_kernel_and_ram_disk_must_fit_between_the_holes() {
        let kernel = "{ file = \"bzImage\" }";
        let text = format!("arch = \"x86_64\"\n[[vm]]\n{ONE}kernel = {kernel}\n").replace("64 MiB", "16 MiB");
        let line = load_text(&text).unwrap_err();
        assert!(line.starts_with("system.toml:5:7: the kernel takes 8 MiB at 0x1000000, but it"), "{line}");
        assert!(line.ends_with("raise `ram` or link it elsewhere"), "{line}");
    }

    #[test]
    fn only_a_pc_has_a_hypervisor_leaf() {
        let keys = format!("{ONE}kernel = {{ file = \"Image\" }}\nhypervisor-leaf = true");
        let line = load_vm(&keys).unwrap_err();
        assert!(line.starts_with("system.toml:7:19: a CPU of aarch64 has no leaf"), "{line}");
    }

    #[test]
    fn the_memory_that_a_kernel_needs_when_it_runs_must_be_there() {
        let line = load_vm(&format!("{ONE}kernel = {{ file = \"Image\" }}").replace("64 MiB", "16 MiB"))
            .unwrap_err();
        assert!(
            line.starts_with("system.toml:5:7: kernel, device tree and initrd reach 18 MiB into RAM"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn every_system_of_ours_keeps_the_rules() {
        let folders = ["images", "tests/images"].map(|folder| workspace::root().join(folder));
        let systems = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let mut seen = 0;
        for path in systems.map(|entry| entry.unwrap().path().join(FILE_NAME)).filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&path).unwrap();
            let tables =
                tables::parse(&text).unwrap_or_else(|mistake| panic!("{}: {mistake:?}", path.display()));
            let no_files = |_: &str, _| bail!("payloads are not fetched for this test");
            let mistakes = compile(&tables, path.parent().unwrap(), &no_files).unwrap_err();
            for mistake in mistakes {
                assert_eq!(mistake.what, "payloads are not fetched for this test", "{}", path.display());
            }
            seen += 1;
        }
        assert!(seen > 0, "there is no system at all");
    }

    #[test]
    fn a_folder_without_a_system_is_told_so() {
        let error = load(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.starts_with("no/such/folder/system.toml: cannot be read: No such file"), "{error}");
        assert!(error.ends_with("name a folder with a system.toml"), "{error}");
    }
}
