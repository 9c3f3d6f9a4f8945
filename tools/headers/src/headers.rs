//! The texts of the C headers.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::declarations::{Item, Kind, WIDTH, declarations, fill, public_item};
use crate::nouns::{EXTENSION, HEADERS, Header};

/// The text that the umbrella begins with.
const CONVENTIONS: &str = "src/capi/conventions.md";

/// Every header by its path in include, with its text.
pub fn headers(root: &Path) -> Vec<(String, String)> {
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
            (format!("weighbridge/{}.h", header.noun), header_text(root, header, items, &homes))
        })
        .collect();
    headers.push(("weighbridge.h".into(), umbrella_text(root)));
    headers
}

/// The noun of the header that declares a name, and the kind of the item.
type Homes = HashMap<String, (&'static str, Kind)>;

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
fn header_text(root: &Path, header: &Header, items: &[Item], homes: &Homes) -> String {
    let mut body = match header.noun {
        "version" => version_macros(root),
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

/// The version of the library's Cargo.toml.
fn version_macros(root: &Path) -> String {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .expect("the manifest names a version");
    let mut text =
        "\n/** The version of this header; wb_version() returns that of the library. */\n"
            .to_owned();
    for (part, number) in ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split('.')) {
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
