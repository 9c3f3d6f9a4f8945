//! What cbindgen makes of the sources, as declarations of C that are wrapped as the headers are.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use crate::nouns::HEADERS;

/// Columns of a header.
pub const WIDTH: usize = 100;

/// What is declared.
#[derive(PartialEq, Clone, Copy)]
pub enum Kind {
    Opaque,
    Constant,
    Struct,
    Callback,
    Number,
    Function,
}

/// A declaration in C, with its comment.
pub struct Item {
    pub name: String,
    pub kind: Kind,
    /// The type of a constant, and a type itself.
    pub group: String,
    pub comment: String,
    pub code: String,
}

/// What cbindgen makes of the sources, item by item.
pub fn declarations(root: &Path) -> HashMap<String, Item> {
    let config = cbindgen::Config::from_file(root.join("tools/headers/cbindgen.toml"))
        .expect("cbindgen.toml is valid");
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
    assert!(!code.starts_with(' '), "a comment has the end of a comment in it: {block}");
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
pub fn public_item(line: &str) -> Option<(&str, &str)> {
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
pub fn fill(head: &str, words: &str, end: &str) -> String {
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
