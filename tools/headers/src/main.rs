//! Writes the C headers from the sources; with `--check` it writes nothing, and fails if one is stale.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

mod declarations;
mod headers;
mod nouns;

/// As in the sources.
const MOST_COLUMNS: usize = 100;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let check = match env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => false,
        [ref word] if word == "--check" => true,
        _ => panic!("the arguments are --check, or none"),
    };
    let include = root.join("include");
    let headers = headers::headers(&root);
    let mut stale = false;
    let committed = fs::read_dir(include.join("weighbridge")).into_iter().flatten().flatten();
    for file in committed.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if !headers.iter().any(|(name, _)| *name == format!("weighbridge/{file}")) {
            eprintln!("no source gives include/weighbridge/{file}: remove it");
            stale = true;
        }
    }
    for (name, text) in headers {
        let too_long = text.lines().find(|line| line.chars().count() > MOST_COLUMNS);
        if let Some(line) = too_long {
            eprintln!(
                "include/{name} would have a line of more than {MOST_COLUMNS} columns: {line}"
            );
            stale = true;
            continue;
        }
        let path = include.join(&name);
        if fs::read_to_string(&path).is_ok_and(|committed| committed == text) {
            continue;
        }
        if check {
            eprintln!("include/{name} is not what the sources give: run `make header`");
            stale = true;
        } else {
            fs::create_dir_all(path.parent().expect("include")).expect("include can be written");
            fs::write(&path, text).expect("the header can be written");
        }
    }
    if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
