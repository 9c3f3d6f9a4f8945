//! Writes the C headers, compiles the kernels for the host, and sets what the linker needs to know.
//!
//! The committed headers must be those that the sources give: a build with a stale header fails,
//! and `WEIGHBRIDGE_HEADER=write` (that is `make header`) writes them.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A header of include/weighbridge.
struct Header {
    noun: &'static str,
    title: &'static str,
    /// The files of src whose public items it declares, in this order; opaque types come first.
    files: &'static [&'static str],
}

const HEADERS: &[Header] = &[
    Header { noun: "version", title: "The version of the library.", files: &["capi/version.rs"] },
    Header { noun: "status", title: "Status codes.", files: &["status.rs", "capi/status.rs"] },
    Header {
        noun: "error",
        title: "Errors, and the callback for errors that no call can return.",
        files: &["capi/error.rs", "capi/log.rs"],
    },
    Header { noun: "dtype", title: "Element types.", files: &["tensor/dtype.rs"] },
    Header {
        noun: "device",
        title: "Devices: CUDA devices, and the host. Their memory, copies and streams.",
        files: &[
            "capi/tristate.rs",
            "capi/device/handle.rs",
            "capi/device/info.rs",
            "capi/device/memory.rs",
            "capi/device/stream.rs",
        ],
    },
    Header {
        noun: "buffer",
        title: "Buffers: host memory that is allocated, registered, or mapped from a file.",
        files: &[
            "capi/progress.rs",
            "capi/buffer/options.rs",
            "capi/buffer/handle.rs",
            "capi/buffer/info.rs",
        ],
    },
    Header {
        noun: "view",
        title: "Views: typed, shaped, strided windows into memory.",
        files: &["capi/view/layout.rs", "capi/view/handle.rs", "capi/view/info.rs"],
    },
    Header {
        noun: "dlpack",
        title: "Views as tensors of DLPack, and tensors of DLPack as views.",
        files: &["capi/dlpack/export.rs", "capi/dlpack/import.rs"],
    },
    Header {
        noun: "parameter",
        title: "Parameters of a model, as plans and offloaders take them.",
        files: &["capi/parameter.rs"],
    },
    Header {
        noun: "safetensors",
        title: "Safetensors files: tensors by name and index over one buffer.",
        files: &["capi/safetensors.rs"],
    },
    Header {
        noun: "plan",
        title: "Plans: the placement of every parameter, before anything is allocated.",
        files: &["capi/plan/options.rs", "capi/plan/handle.rs", "capi/plan/info.rs"],
    },
    Header {
        noun: "offloader",
        title: "Offloaders: committed plans, which keep parameters and transfer them.",
        files: &[
            "capi/offloader/handle.rs",
            "capi/offloader/step.rs",
            "capi/offloader/parameters.rs",
            "capi/offloader/stats.rs",
        ],
    },
    Header {
        noun: "quantizer",
        title: "Quantizers: tensors to FP8 and back.",
        files: &[
            "capi/quantizer/options.rs",
            "capi/quantizer/handle.rs",
            "capi/quantizer/tensor.rs",
        ],
    },
    Header {
        noun: EXTENSION,
        title: "For bindings of Python: DLPack capsules and owners of memory. Not part of weighbridge.h.",
        files: &["capi/python.rs"],
    },
];

/// The header that the umbrella leaves out.
const EXTENSION: &str = "python";
/// The text that the umbrella begins with.
const CONVENTIONS: &str = "src/capi/conventions.md";
/// Columns of a header.
const WIDTH: usize = 100;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-env-changed=WEIGHBRIDGE_HEADER");
    for file in ["cbindgen.toml", "Cargo.toml", CONVENTIONS, "include"] {
        println!("cargo:rerun-if-changed={file}");
    }
    for file in HEADERS.iter().flat_map(|header| header.files) {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets it");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libweighbridge.so.{major}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    check_headers(&root);
    compile_kernels();
    pack_kernels(&root);
}

/// Compares the committed headers with those that the sources give, or writes them.
fn check_headers(root: &Path) {
    let write = env::var_os("WEIGHBRIDGE_HEADER").is_some_and(|value| value == "write");
    let headers = headers(root);
    let committed = fs::read_dir(root.join("include/weighbridge")).into_iter().flatten().flatten();
    for file in committed.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if !headers.iter().any(|(name, _)| *name == format!("weighbridge/{file}")) {
            println!("cargo::error=no source gives include/weighbridge/{file}: remove it");
        }
    }
    for (name, text) in headers {
        let path = root.join("include").join(&name);
        if fs::read_to_string(&path).is_ok_and(|committed| committed == text) {
            continue;
        }
        if write {
            fs::create_dir_all(path.parent().expect("include")).expect("include can be written");
            fs::write(&path, text).expect("the header can be written");
        } else {
            println!("cargo::error=include/{name} is not what the sources give: run `make header`");
        }
    }
}

/// Every header by its path in include, with its text.
fn headers(root: &Path) -> Vec<(String, String)> {
    let mut items = declarations(root);
    let mut homes = Homes::new();
    let mut contents = Vec::new();
    for header in HEADERS {
        let mut mine = Vec::new();
        for file in header.files {
            let text = fs::read_to_string(root.join("src").join(file)).expect("a source file");
            for (name, group) in text.lines().filter_map(public_item) {
                mine.extend(items.remove(name).map(|item| Item { group: group.into(), ..item }));
            }
        }
        // A stable sort: opaque types first, everything else in the order of the sources.
        mine.sort_by_key(|item| item.kind != Kind::Opaque);
        homes.extend(mine.iter().map(|item| (item.name.clone(), (header.noun, item.kind))));
        contents.push((header, mine));
    }
    assert!(items.is_empty(), "no header declares {:?}", items.keys());
    let mut headers: Vec<_> = contents
        .iter()
        .map(|(header, items)| {
            (format!("weighbridge/{}.h", header.noun), header_text(header, items, &homes))
        })
        .collect();
    headers.push(("weighbridge.h".into(), umbrella_text(root)));
    headers
}

/// The noun of the header that declares a name, and the kind of the item.
type Homes = HashMap<String, (&'static str, Kind)>;

#[derive(PartialEq, Clone, Copy)]
enum Kind {
    Opaque,
    Constant,
    Struct,
    Callback,
    Number,
    Function,
}

/// A declaration in C, with its comment.
struct Item {
    name: String,
    kind: Kind,
    /// The type of a constant, and a type itself.
    group: String,
    comment: String,
    code: String,
}

/// What cbindgen makes of the sources, item by item.
fn declarations(root: &Path) -> HashMap<String, Item> {
    let config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let files = HEADERS.iter().flat_map(|header| header.files);
    let builder = files.fold(cbindgen::Builder::new().with_config(config), |builder, file| {
        builder.with_src(root.join("src").join(file))
    });
    let mut text = Vec::new();
    builder.generate().expect("the C interface parses").write(&mut text);
    let text = String::from_utf8(text).expect("the sources are UTF-8");
    text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()).map(item).collect()
}

fn item(block: &str) -> (String, Item) {
    let (comment, code) = match block.split_once("*/\n") {
        Some((comment, code)) if comment.starts_with("/**") => (format!("{comment}*/"), code),
        _ => (String::new(), block),
    };
    let (kind, name) = if let Some(rest) = code.strip_prefix("#define ") {
        (Kind::Constant, first_word(rest).to_owned())
    } else if let Some(rest) = code.strip_prefix("typedef struct wb_") {
        (Kind::Opaque, format!("wb_{}", first_word(rest)))
    } else if code.starts_with("typedef struct {") {
        let (_, name) = code.rsplit_once("} ").expect("a struct has a name");
        (Kind::Struct, first_word(name).to_owned())
    } else if let Some(callback) =
        code.strip_prefix("typedef ").and_then(|code| code.split_once("(*"))
    {
        (Kind::Callback, first_word(callback.1).to_owned())
    } else {
        // The word at the parenthesis or at the end.
        let head = code.split(['(', ';']).next().expect("there is one");
        let name = head.rsplit([' ', '*']).next().expect("there is one").to_owned();
        (if code.starts_with("typedef") { Kind::Number } else { Kind::Function }, name)
    };
    let code = match kind {
        Kind::Struct => fields(code),
        Kind::Function => function(code),
        _ => code.to_owned(),
    };
    let comment = if comment.is_empty() { comment } else { short(&comment) + "\n" };
    (name.clone(), Item { name, kind, group: String::new(), comment, code })
}

/// The public item that a line of Rust begins, and the type that a constant belongs to.
fn public_item(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix("pub ")?;
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let rest = ["type ", "const ", "struct ", "extern \"C\" fn "]
        .iter()
        .find_map(|keyword| rest.strip_prefix(keyword))?;
    let name = first_word(rest);
    let group = rest[name.len()..].strip_prefix(": ").map_or(name, first_word);
    Some((name, group))
}

fn first_word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// A comment of one line takes one line.
fn short(comment: &str) -> String {
    let indent = &comment[..comment.len() - comment.trim_start().len()];
    match comment.lines().map(str::trim).collect::<Vec<_>>()[..] {
        ["/**", text, "*/"] => {
            let line = format!("{indent}/** {} */", text.trim_start_matches("* "));
            if line.chars().count() <= WIDTH { line } else { comment.to_owned() }
        }
        _ => comment.to_owned(),
    }
}

/// A struct with short comments.
fn fields(code: &str) -> String {
    let (mut text, mut comment) = (String::new(), String::new());
    for line in code.lines() {
        if line.trim_start().starts_with("/**") || !comment.is_empty() {
            comment += line;
            comment.push('\n');
            if line.trim_end().ends_with("*/") {
                writeln!(text, "{}", short(comment.trim_end())).expect("memory");
                comment.clear();
            }
        } else {
            writeln!(text, "{line}").expect("memory");
        }
    }
    text.trim_end().to_owned()
}

/// A function whose parameters fill the lines.
fn function(code: &str) -> String {
    let joined = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((head, parameters)) = joined.split_once('(') else { return joined };
    fill(&format!("{head}("), parameters, "")
}

/// Words that commas separate, wrapped behind `head`; every line but the last ends in `end`.
fn fill(head: &str, words: &str, end: &str) -> String {
    let mut lines = vec![head.to_owned()];
    for (index, word) in words.split(", ").enumerate() {
        let comma = if index + 1 < words.split(", ").count() { "," } else { "" };
        let line = lines.last_mut().expect("there is one");
        let space = if index == 0 { "" } else { " " };
        if line.len() + space.len() + word.len() + 1 + end.len() > WIDTH {
            lines.push(format!("{}{word}{comma}", " ".repeat(head.len())));
        } else {
            *line += &format!("{space}{word}{comma}");
        }
    }
    lines.join(&format!("{end}\n"))
}

/// The initial value of a struct: its size, and zeros.
fn initializer(Item { name, code, .. }: &Item, homes: &Homes) -> String {
    let code = without_comments(code);
    let fields = code.lines().filter(|line| line.ends_with(';') && line.starts_with(' '));
    let mut values = format!("{{sizeof({name})");
    for field in fields.skip(1) {
        let kind = field.trim_start().split(' ').next().expect("a field has a type");
        values += if field.contains('[') {
            ", {0}"
        } else if field.contains('*')
            || homes.get(kind).is_some_and(|home| home.1 == Kind::Callback)
        {
            ", NULL"
        } else if kind == "double" {
            ", 0.0"
        } else {
            ", 0"
        };
    }
    let head = format!("#define {}_INIT", name.to_uppercase());
    match format!("{head} {values}}}") {
        line if line.len() <= WIDTH => line,
        _ => format!("{head} \\\n{}", fill("    ", &(values + "}"), " \\")),
    }
}

/// A header; `homes` is the header of every name, and the kind of its item.
fn header_text(header: &Header, items: &[Item], homes: &Homes) -> String {
    let mut body = match header.noun {
        "version" => version_macros(),
        "dlpack" => "\nstruct DLManagedTensor;\nstruct DLManagedTensorVersioned;\n".to_owned(),
        _ => String::new(),
    };
    let mut group = "";
    for item in items {
        // The constants of a type follow it.
        let continues = item.kind == Kind::Constant && item.group == group;
        body += if continues { "" } else { "\n" };
        group = &item.group;
        body += &item.comment;
        writeln!(body, "{}", item.code).expect("memory");
        if item.kind == Kind::Struct {
            writeln!(body, "{}", initializer(item, homes)).expect("memory");
        }
    }
    let code = without_comments(&body);
    let used = words(&code);
    let mut text = format!("/* {}\n * {GENERATED} */\n", header.title);
    let guard = format!("WEIGHBRIDGE_{}_H", header.noun.to_uppercase());
    write!(text, "#ifndef {guard}\n#define {guard}\n\n").expect("memory");
    let integer = |word: &&str| word.contains("int") && word.ends_with("_t");
    for (needed, file) in [(used.contains("NULL"), "stddef"), (used.iter().any(integer), "stdint")]
    {
        text += &if needed { format!("#include <{file}.h>\n") } else { String::new() };
    }
    text += if text.ends_with(".h>\n") { "\n" } else { "" };
    let others = used.iter().filter_map(|word| Some(homes.get(*word)?.0));
    for noun in others.filter(|noun| *noun != header.noun).collect::<BTreeSet<_>>() {
        writeln!(text, "#include \"{noun}.h\"").expect("memory");
    }
    text.truncate(text.trim_end().len());
    text + "\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n"
        + &body
        + "\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n"
}

const GENERATED: &str = "Generated from the Rust sources; change those and run `make header`.";

fn umbrella_text(root: &Path) -> String {
    let conventions = fs::read_to_string(root.join(CONVENTIONS)).expect("the conventions");
    let mut text = "/*\n".to_owned();
    for line in conventions.replace("**", "").lines() {
        writeln!(text, "{}", format!(" * {line}").trim_end()).expect("memory");
    }
    write!(text, " *\n * {GENERATED}\n */\n#ifndef WEIGHBRIDGE_H\n#define WEIGHBRIDGE_H\n\n")
        .expect("memory");
    for header in HEADERS.iter().filter(|header| header.noun != EXTENSION) {
        writeln!(text, "#include \"weighbridge/{}.h\"", header.noun).expect("memory");
    }
    text + "\n#endif\n"
}

fn version_macros() -> String {
    let mut text =
        "\n/** The version of this header; wb_version() returns that of the library. */\n"
            .to_owned();
    for part in ["MAJOR", "MINOR", "PATCH"] {
        let number = env::var(format!("CARGO_PKG_VERSION_{part}")).expect("cargo sets it");
        writeln!(text, "#define WB_VERSION_{part} {number}").expect("memory");
    }
    text + "#define WB_VERSION ((WB_VERSION_MAJOR << 16) | (WB_VERSION_MINOR << 8) | WB_VERSION_PATCH)\n"
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

fn without_comments(code: &str) -> String {
    let mut text = String::new();
    let mut rest = code;
    while let Some((before, comment)) = rest.split_once("/*") {
        text += before;
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    text + rest + "\n"
}

/// Compresses the kernels for CUDA devices: PTX is repetitive text.
fn pack_kernels(root: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["quantize.sm_75.ptx", "quantize.sm_90.ptx"] {
        let path = root.join("kernels").join(name);
        println!("cargo:rerun-if-changed={}", path.display());
        let text = fs::read(&path).expect("the PTX is committed");
        let packed = miniz_oxide::deflate::compress_to_vec(&text, 10);
        fs::write(out.join(name), packed).expect("OUT_DIR can be written");
    }
}

/// Compiles the kernels for the host, once for each set of vector instructions to choose from.
fn compile_kernels() {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let wider: &[(&str, &[&str])] =
        &[("_avx2", &["-mavx2"]), ("_avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl"])];
    for (suffix, flags) in [("_plain", &[][..])].iter().chain(wider.iter().filter(|_| x86)) {
        cc::Build::new()
            .file("kernels/host.c")
            .define("WB_KERNEL", *suffix)
            .flags(*flags)
            // Products are rounded before they are added, and loops may compute unused values.
            .flags(["-std=c11", "-ffp-contract=off", "-fno-trapping-math"])
            .flag_if_supported("-fstack-protector-strong")
            .opt_level(3)
            .warnings_into_errors(true)
            .extra_warnings(true)
            .compile(&format!("weighbridge_kernels{suffix}"));
    }
    for file in ["host.c", "blocks.h", "fp8.h"] {
        println!("cargo:rerun-if-changed=kernels/{file}");
    }
}
