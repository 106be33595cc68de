//! The rules of the house: facts about the tree that nobody would notice rotting.
//!
//! Each rule reads a [`Tree`] and gives its findings, a line each with file and line number. A rule has two
//! tests: one that it holds for this repository, and one that it can fail, on a small tree that breaks it.
//! Taste is not judged here.
//!
//! The target belongs to the package `ringbench`, which knows both programs and so all options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

/// The modules of the server from the outside in, a layer each. A module may import what lies further in.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli", "doctor"],
    &["top"],
    &["admin"],
    &["server"],
    &["workers"],
    &["engine"],
    &["offload", "page", "tls"],
    &["protocol"],
    &["buffer"],
    &["listen"],
    &["cpus", "linux", "log", "memory", "metrics", "retry", "slab", "statistics_file"],
    &["sandbox"],
];
/// In the folder of the engines, nothing but `engine/mod.rs` imports these.
const ENGINES: [&str; 3] = ["epoll", "tokio_uring", "uring"];
/// Where unsafe code may be: the files, and the folders with everything in them.
const UNSAFE: [&str; 5] = [
    "src/memory.rs",
    "src/engine/uring/",
    "src/engine/tokio_uring/",
    "src/offload/program.rs",
    "src/tests/compression/heap.rs",
];
/// What the code map covers.
const MAPPED: [&str; 3] = ["src/", "bench/", "scripts/"];
const MAP: &str = "docs/architecture.md";

/// The repository's files by their paths, of those with text the text.
struct Tree(BTreeMap<String, String>);

impl Tree {
    /// The tree that this test was built from.
    fn here() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = BTreeMap::new();
        read(&root, &root, &mut files);
        assert!(files.contains_key("src/tests/house.rs"), "the root is {}", root.display());
        Tree(files)
    }

    /// A tree of its own for a rule's test.
    fn of(files: &[(&str, &str)]) -> Tree {
        Tree(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }

    /// The files below `folder` that end so.
    fn files<'a>(&'a self, folder: &str, ending: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let found = self
            .0
            .iter()
            .filter(move |(path, _)| path.starts_with(folder) && path.ends_with(ending));
        found.map(|(path, text)| (path.as_str(), text.as_str()))
    }

    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        self.0.keys().any(|file| file == path || file.starts_with(&folder))
    }

    /// The documents for users and developers.
    fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        let documents = self.files("", ".md");
        documents.filter(|(path, _)| path.starts_with("docs/") || !path.contains('/'))
    }
}

/// Reads all files but those that are built or installed.
fn read(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        if ["target", "node_modules", "__pycache__", ".git"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            read(root, &path, files);
        } else {
            let relative = path.strip_prefix(root).expect("below the root").to_string_lossy();
            let text = fs::read(&path).expect("a file");
            files.insert(relative.into_owned(), String::from_utf8(text).unwrap_or_default());
        }
    }
}

/// Fails with all findings.
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// Fails unless each finding contains its words, and there are no more.
fn assert_found(findings: &[String], words: &[&str]) {
    let fits = findings.len() == words.len()
        && findings.iter().zip(words).all(|(finding, word)| finding.contains(word));
    assert!(fits, "expected {words:?}, found {findings:#?}");
}

/// An import: where it stands, and the module that it names.
#[derive(Debug)]
struct Import {
    place: String,
    from: Vec<String>,
    to: Vec<String>,
}

/// The modules of the server's crate that are not tests, by their paths.
fn modules(tree: &Tree) -> BTreeMap<Vec<String>, (&str, &str)> {
    let mut modules = BTreeMap::new();
    let mut tests = Vec::new();
    for (file, text) in tree.files("src/", ".rs") {
        let path = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        if path[0] == "tests" || path == ["lib"] {
            continue;
        }
        for line in text.split("#[cfg(test)]\n").skip(1) {
            if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.split_once(';')) {
                tests.push([&path[..], &[name.0.to_owned()]].concat());
            }
        }
        modules.insert(path, (file, text));
    }
    modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
    modules
}

/// The code of a file: no comments, and nothing of its unit tests, which stand at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    (1..).zip(lines)
}

/// What the modules import from each other: every path that begins with `crate` or `super`.
fn imports(tree: &Tree) -> Vec<Import> {
    let modules = modules(tree);
    let mut imports = Vec::new();
    for (path, (file, text)) in &modules {
        let lines: Vec<(usize, &str)> = code(text).collect();
        for (at, &(number, line)) in lines.iter().enumerate() {
            // A group may go on over lines.
            let rest = || lines[at..].iter().map(|(_, line)| *line).collect::<Vec<_>>().join(" ");
            for start in ["crate::", "super::"] {
                for (place, _) in line.match_indices(start) {
                    let before = &line[..place];
                    // A visibility is no import.
                    if before.ends_with("super::")
                        || before.ends_with("(in ")
                        || before.ends_with(|c: char| c.is_alphanumeric())
                    {
                        continue;
                    }
                    for target in targets(&rest()[place..], path) {
                        let to = home(&modules, &target);
                        let place = format!("{file}:{number}");
                        imports.push(Import { place, from: path.clone(), to });
                    }
                }
            }
        }
    }
    imports
}

/// The module in which what a path names is defined.
fn home(modules: &BTreeMap<Vec<String>, (&str, &str)>, path: &[String]) -> Vec<String> {
    // The longest beginning that is a module; what follows is in it.
    let known = (1..=path.len()).rev().map(|length| path[..length].to_vec());
    let Some(module) = known.into_iter().find(|known| modules.contains_key(known)) else {
        return Vec::new();
    };
    let Some(name) = path.get(module.len()) else { return module };
    // Or it only passes on what one of its own modules defines.
    let passed_on = code(modules[&module].1).find_map(|(_, line)| {
        let line = line.strip_prefix("pub use ")?;
        let (child, names) = line.strip_prefix("self::").unwrap_or(line).split_once("::")?;
        let word = |c: char| !(c.is_alphanumeric() || c == '_');
        names.split(word).any(|passed| passed == name).then(|| child.to_owned())
    });
    let child = passed_on.map(|child| [&module[..], &[child]].concat());
    child.filter(|child| modules.contains_key(child)).unwrap_or(module)
}

/// The paths that `text` begins with, seen from `module`: several if they are a group.
fn targets(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix("crate::") {
        (base, rest) = (Vec::new(), after);
    }
    while let Some(after) = rest.strip_prefix("super::") {
        base.pop();
        rest = after;
    }
    let names = |text: &str| -> Vec<String> {
        let word = |c: char| !(c.is_alphanumeric() || c == '_' || c == ':');
        let path = text.split(word).next().unwrap_or_default();
        path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    base.extend(names(rest));
    let path = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let Some(group) = path.and_then(|end| rest[end..].strip_prefix('{')) else { return vec![base] };
    let (mut depth, mut items, mut begin) = (0, Vec::new(), 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            ',' if depth == 0 => {
                items.push(&group[begin..at]);
                begin = at + 1;
            }
            '}' if depth == 0 => {
                items.push(&group[begin..at]);
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    let items = items.into_iter().map(|item| names(item.trim())).filter(|names| !names.is_empty());
    items.map(|names| [base.clone(), names].concat()).collect()
}

/// Imports go inwards: from a module to one of a layer further in.
fn import_directions(tree: &Tree) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut findings = Vec::new();
    for (path, (file, _)) in modules(tree) {
        if layer(&path[0]).is_none() {
            findings.push(format!("{file}:1: {} has no layer in src/tests/house.rs", path[0]));
        }
    }
    for Import { place, from, to } in imports(tree) {
        let Some(target) = to.first().filter(|target| **target != from[0]) else { continue };
        if let (Some(from_layer), Some(to_layer)) = (layer(&from[0]), layer(target))
            && from_layer >= to_layer
        {
            findings.push(format!(
                "{place}: {} imports {target}, which does not lie further in",
                from[0]
            ));
        }
    }
    findings
}

/// The engines know nothing of each other, and `engine/mod.rs` imports nothing that imports it.
fn engine_imports(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let engine = |path: &[String]| {
        path.get(1).filter(|name| path[0] == "engine" && ENGINES.contains(&name.as_str())).cloned()
    };
    let parent = tree.0.get("src/engine/mod.rs").map_or("", String::as_str);
    let imported_by_parent =
        |child: &str| code(parent).any(|(_, line)| line.contains(&format!("{child}::")));
    for Import { place, from, to } in imports(tree) {
        if let Some(to) = engine(&to)
            && from[0] == "engine"
            && from.len() > 1
            && engine(&from).is_none_or(|from| from != to)
        {
            findings.push(format!("{place}: {} imports the engine {to}", from.join("::")));
        }
        if to == ["engine"] && from[0] == "engine" && from.len() > 1 && imported_by_parent(&from[1])
        {
            findings.push(format!("{place}: {} imports engine/mod.rs, which imports it", from[1]));
        }
    }
    findings.dedup();
    findings
}

/// The modules of the protocol, a rule of the standard each, do not import each other in a circle.
fn import_circles(tree: &Tree) -> Vec<String> {
    let mut edges: BTreeMap<(Vec<String>, String, String), String> = BTreeMap::new();
    for Import { place, from, to } in imports(tree) {
        let common = from.iter().zip(&to).take_while(|(left, right)| left == right).count();
        if let (Some(left), Some(right)) = (from.get(common), to.get(common))
            && from[..common] == ["protocol"]
        {
            let key = (from[..common].to_vec(), left.clone(), right.clone());
            edges.entry(key).or_insert(place);
        }
    }
    let reaches = |folder: &Vec<String>, from: &String, to: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(name) = next.pop() {
            if name == to {
                return true;
            }
            if seen.insert(name) {
                let follow = edges.keys().filter(|(of, left, _)| of == folder && left == name);
                next.extend(follow.map(|(_, _, right)| right));
            }
        }
        false
    };
    let circular = edges.iter().filter(|((folder, from, to), _)| reaches(folder, to, from));
    circular
        .map(|((_, from, to), place)| format!("{place}: {from} and {to} import each other"))
        .collect()
}

/// Unsafe code is only in the named files, each block with the number of an invariant that the file opens
/// with.
fn unsafe_code(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let files = tree.files("src/", ".rs").chain(tree.files("bench/", ".rs"));
    for (file, text) in files.filter(|(file, _)| *file != "src/tests/house.rs") {
        let invariants = text.lines().filter(|line| {
            let item = line.strip_prefix("//! ").and_then(|line| line.split_once(". "));
            item.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
        });
        let invariants = invariants.count();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !["unsafe {", "unsafe impl ", "unsafe fn ", "unsafe extern "]
                .iter()
                .any(|word| code.contains(word))
            {
                continue;
            }
            let place = format!("{file}:{}", at + 1);
            if !UNSAFE.iter().any(|allowed| {
                file == *allowed || allowed.ends_with('/') && file.starts_with(allowed)
            }) {
                findings.push(format!("{place}: unsafe code outside of {}", UNSAFE.join(", ")));
                continue;
            }
            // A function that is unsafe to call states its own demand.
            if code.contains("unsafe fn ") {
                continue;
            }
            let comment = lines[at.saturating_sub(8)..=at].iter().rev();
            let nearest = comment.clone().find(|line| line.contains("SAFETY:"));
            let cited = nearest.and_then(|line| line.split_once("SAFETY: invariant"));
            let number = cited.map(|(_, rest)| rest.trim_start_matches('s').trim_start());
            let number = number
                .map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
            match number.and_then(|number| number.parse::<usize>().ok()) {
                Some(number) if (1..=invariants).contains(&number) => {}
                Some(number) => {
                    findings.push(format!("{place}: the file opens with no invariant {number}"));
                }
                None => {
                    findings.push(format!("{place}: no `SAFETY: invariant N` above unsafe code"));
                }
            }
        }
    }
    findings
}

/// The first cells of the code map, with their lines. In a cell stand paths from the root, in backticks;
/// `{a,b}` are alternatives, and a folder, which ends in a slash, stands for everything in it.
fn code_map(tree: &Tree) -> Vec<(usize, String)> {
    let text = tree.0.get(MAP).map_or("", String::as_str);
    let section = (1..).zip(text.lines()).skip_while(|(_, line)| *line != "## Code map").skip(1);
    let rows = section
        .take_while(|(_, line)| !line.starts_with("## "))
        .filter(|(_, line)| line.starts_with("| `"));
    let mut paths = Vec::new();
    for (number, row) in rows {
        let cell = row.trim_start_matches("| ").split(" |").next().unwrap_or_default();
        for path in cell.split('`').skip(1).step_by(2) {
            paths.extend(alternatives(path).into_iter().map(|path| (number, path)));
        }
    }
    paths
}

fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((names, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    names.split(',').map(|name| format!("{before}{}{after}", name.trim())).collect()
}

/// The code map names every file, and nothing that is not there.
fn mapped_files(tree: &Tree) -> Vec<String> {
    let map = code_map(tree);
    let mut findings = Vec::new();
    for (number, path) in map.iter().filter(|(_, path)| !tree.has(path)) {
        findings.push(format!("{MAP}:{number}: there is no {path}"));
    }
    for file in tree.0.keys().filter(|file| MAPPED.iter().any(|folder| file.starts_with(folder))) {
        let covers = |path: &str| path == file || path.ends_with('/') && file.starts_with(path);
        if !map.iter().any(|(_, path)| covers(path)) {
            findings.push(format!("{file}:1: not in the code map of {MAP}"));
        }
    }
    findings
}

/// Every long option of a program and of its subcommands that help shows.
fn options(command: &clap::Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|option| !option.is_hide_set());
    let mut options: Vec<String> =
        shown.filter_map(|option| option.get_long()).map(|long| format!("--{long}")).collect();
    let subcommands = command.get_subcommands().filter(|command| !command.is_hide_set());
    options.extend(subcommands.flat_map(self::options));
    options.sort();
    options.dedup();
    options
}

/// Every option is in the documents.
fn documented_options(tree: &Tree, program: &str, options: &[String]) -> Vec<String> {
    let documents: String = tree.files("docs/", ".md").map(|(_, text)| text).collect();
    let is_word = |next: Option<char>| next.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-');
    let is_documented = |option: &String| {
        documents
            .match_indices(option.as_str())
            .any(|(at, found)| !is_word(documents[at + found.len()..].chars().next()))
    };
    let missing = options.iter().filter(|option| !is_documented(option));
    missing.map(|option| format!("docs/: {option} of {program} is not mentioned")).collect()
}

/// Every path in a document is there: in backticks or as the target of a link.
fn real_paths(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for (document, text) in tree.documents() {
        for (number, line) in (1..).zip(text.lines()) {
            let spans = line.split('`').skip(1).step_by(2).flat_map(|span| span.split_whitespace());
            let paths = spans.filter(|span| {
                let folders = ["src/", "bench/", "scripts/", "docs/", ".ci/"];
                folders.iter().any(|folder| span.starts_with(folder)) && !span.contains(['*', '<'])
            });
            for path in paths.flat_map(alternatives) {
                let path = path.split([':', ',', '#']).next().unwrap_or_default().to_owned();
                if !tree.has(&path) {
                    findings.push(format!("{document}:{number}: there is no {path}"));
                }
            }
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = link.split('#').next().unwrap_or_default();
                if path.is_empty() || path.contains("://") {
                    continue;
                }
                let folder = Path::new(document).parent().unwrap_or(Path::new(""));
                if !tree.has(&normal(&folder.join(path))) {
                    findings.push(format!("{document}:{number}: the link {link} leads nowhere"));
                }
            }
        }
    }
    findings
}

/// A path without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.iter().filter_map(|part| part.to_str()) {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Every command of a document can be given: its script is there, its options are those of the program.
/// `programs` are the programs' names with their options.
fn real_commands(tree: &Tree, programs: &[(&str, Vec<String>)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (document, text) in tree.documents() {
        let mut is_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            is_code ^= line.trim_start().starts_with("```");
            let Some(command) = line.strip_prefix("$ ").filter(|_| is_code) else { continue };
            let command = command.split(" #").next().unwrap_or_default();
            // What cargo is told to run has its options after `--`.
            let (_, command) = match command.strip_prefix("cargo ") {
                Some(rest) => rest.split_once(" -- ").unwrap_or_default(),
                None => ("", command),
            };
            let mut program = None;
            for word in command.split_whitespace().map(|word| word.trim_matches(['"', '\''])) {
                let name = word.rsplit('/').next().unwrap_or_default();
                if let Some(found) =
                    programs.iter().find(|(of, _)| name == *of || word.ends_with(&format!("={of}")))
                {
                    program = Some(found);
                } else if word.starts_with("scripts/") && !tree.has(word) {
                    findings.push(format!("{document}:{number}: there is no {word}"));
                } else if ["|", "&&", ";", "&", "--"].contains(&word) {
                    program = None;
                } else if let Some((name, options)) = program
                    && word.starts_with("--")
                    && let option = word.split('=').next().unwrap_or_default()
                    && !options.iter().any(|known| known == option)
                    && !["--help", "--version"].contains(&option)
                {
                    findings.push(format!("{document}:{number}: {name} has no option {option}"));
                }
            }
        }
    }
    findings
}

/// No file names a place on the machine of whoever wrote it.
fn places(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let machines = ["work", "root", "home"].map(|folder| format!("/{folder}/"));
    for (file, text) in tree.files("", "").filter(|(file, _)| !file.ends_with(".lock")) {
        for (number, line) in (1..).zip(text.lines()) {
            for place in machines.iter().filter(|place| line.contains(place.as_str())) {
                // Within a longer path, as in `/sys/root/`, it is another place.
                let is_whole = line.match_indices(place.as_str()).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}".contains(c))
                });
                if is_whole {
                    findings
                        .push(format!("{file}:{number}: {place} is a place on somebody's machine"));
                }
            }
        }
    }
    findings
}

/// The server does not look at the wall clock, which may be set at any time.
fn wall_clocks(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let names = ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "ClockId::Realtime"];
    for (path, text) in modules(tree).into_values() {
        for (number, line) in code(text) {
            for name in names.iter().filter(|name| line.contains(*name)) {
                findings.push(format!("{path}:{number}: {name} is the wall clock"));
            }
        }
    }
    findings
}

fn programs() -> [(&'static str, Vec<String>); 2] {
    [
        ("ringecho", options(&ringecho::cli::Cli::command())),
        ("ringbench", options(&ringbench::cli::Cli::command())),
    ]
}

#[test]
fn imports_go_inwards() {
    assert_none(&import_directions(&Tree::here()));
}

#[test]
fn imports_that_go_outwards_are_found() {
    let tree = Tree::of(&[
        ("src/protocol/mod.rs", "mod frame;\nuse crate::buffer::Region;\nuse crate::engine;\n"),
        ("src/protocol/frame.rs", "//! `crate::server`\nuse crate::{buffer::{A, B}, server};\n"),
        ("src/buffer.rs", "#[cfg(test)]\nmod tests {\n    use crate::engine;\n}\n"),
        (
            "src/engine/mod.rs",
            "fn f() { crate::server::start(); }\n#[cfg(test)]\nmod simulation;\n",
        ),
        ("src/engine/simulation/mod.rs", "use crate::server;\n"),
        ("src/server.rs", ""),
        ("src/unknown.rs", ""),
    ]);
    let expected = [
        "src/unknown.rs:1: unknown has no layer",
        "src/engine/mod.rs:1: engine imports server",
        "src/protocol/mod.rs:3: protocol imports engine",
        "src/protocol/frame.rs:2: protocol imports server",
    ];
    assert_found(&import_directions(&tree), &expected);
}

#[test]
fn engines_know_nothing_of_each_other() {
    assert_none(&engine_imports(&Tree::here()));
}

#[test]
fn engines_that_know_each_other_are_found() {
    let tree = Tree::of(&[
        (
            "src/engine/mod.rs",
            "mod epoll;\nmod ring;\nmod uring;\npub use self::ring::{Ring, Wait};\nfn run() { epoll::run() }\n",
        ),
        (
            "src/engine/epoll.rs",
            "use super::{ring::Ring, uring::Remedy, Wait};\nuse super::Worker;\n",
        ),
        ("src/engine/uring/mod.rs", "use super::ring::Ring;\n"),
        ("src/engine/ring.rs", "use super::Worker;\nuse crate::engine::{epoll::Epoll, Wait};\n"),
    ]);
    let expected = [
        "src/engine/epoll.rs:1: engine::epoll imports the engine uring",
        "src/engine/epoll.rs:2: epoll imports engine/mod.rs",
        "src/engine/ring.rs:1: ring imports engine/mod.rs",
        "src/engine/ring.rs:2: engine::ring imports the engine epoll",
    ];
    assert_found(&engine_imports(&tree), &expected);
}

#[test]
fn no_imports_go_in_circles() {
    assert_none(&import_circles(&Tree::here()));
}

#[test]
fn imports_that_go_in_circles_are_found() {
    let tree = Tree::of(&[
        ("src/protocol/close.rs", "use super::frame::Frame;\n"),
        ("src/protocol/frame.rs", "use super::violation::Violation;\nuse super::mask;\n"),
        ("src/protocol/violation.rs", "use super::close::Code;\n"),
        ("src/protocol/mask.rs", ""),
    ]);
    let expected = ["close and frame", "frame and violation", "violation and close"];
    assert_found(&import_circles(&tree), &expected);
}

#[test]
fn unsafe_code_rests_on_invariants() {
    assert_none(&unsafe_code(&Tree::here()));
}

#[test]
fn unsafe_code_that_rests_on_nothing_is_found() {
    let block = "// SAFETY: invariant 1.\nunsafe { f() }\n";
    let tree = Tree::of(&[
        ("bench/src/lib.rs", block),
        (
            "src/memory.rs",
            &format!(
                "//! 1. It is mapped.\n{block}// SAFETY: invariants 2 and 1.\nunsafe impl A {{}}\n"
            ),
        ),
        ("src/offload/program.rs", "//! 1. It is shared.\n// SAFETY: it works.\nunsafe { f() }\n"),
    ]);
    let expected = [
        "src/memory.rs:5: the file opens with no invariant 2",
        "src/offload/program.rs:3: no `SAFETY: invariant N`",
        "bench/src/lib.rs:2: unsafe code outside",
    ];
    assert_found(&unsafe_code(&tree), &expected);
}

#[test]
fn the_code_map_is_that_of_the_tree() {
    assert_none(&mapped_files(&Tree::here()));
}

#[test]
fn a_code_map_of_another_tree_is_found() {
    let map = "## Code map\n\n| place | what |\n|---|---|\n| `src/{main,gone}.rs`, `scripts/` | |\n## More\n| `src/none.rs` | |\n";
    let tree =
        Tree::of(&[(MAP, map), ("src/main.rs", ""), ("src/new.rs", ""), ("scripts/test", "")]);
    let expected =
        ["docs/architecture.md:5: there is no src/gone.rs", "src/new.rs:1: not in the code map"];
    assert_found(&mapped_files(&tree), &expected);
}

#[test]
fn every_option_is_documented() {
    let tree = Tree::here();
    for (program, options) in programs() {
        assert!(options.len() > 10, "{options:?}");
        assert_none(&documented_options(&tree, program, &options));
    }
}

#[test]
fn an_option_that_is_not_documented_is_found() {
    let tree =
        Tree::of(&[("docs/server.md", "`--wait` and `--listen-more`"), ("README.md", "--listen")]);
    let options = ["--listen".to_owned(), "--wait".to_owned()];
    assert_found(&documented_options(&tree, "ringecho", &options), &["--listen of ringecho"]);
}

#[test]
fn every_path_in_the_documents_is_there() {
    assert_none(&real_paths(&Tree::here()));
}

#[test]
fn a_path_that_is_not_there_is_found() {
    let text = "`src/{main,gone}.rs` [a](../README.md#x)\n[b](missing.md) `src/*.rs` [c](https://example.com)\n";
    let tree = Tree::of(&[("docs/a.md", text), ("README.md", ""), ("src/main.rs", "")]);
    let expected = ["docs/a.md:1: there is no src/gone.rs", "docs/a.md:2: the link missing.md"];
    assert_found(&real_paths(&tree), &expected);
}

#[test]
fn every_command_in_the_documents_can_be_given() {
    assert_none(&real_commands(&Tree::here(), &programs()));
}

#[test]
fn a_command_that_cannot_be_given_is_found() {
    let text = "$ scripts/not-code\n```\n$ scripts/gone --x\n$ sudo target/release/ringecho --listen a --gone | cat --y\n$ scripts/test\n$ cargo run -p ringecho --bin x\n```\n";
    let tree = Tree::of(&[("README.md", text), ("scripts/test", "")]);
    let programs = [("ringecho", vec!["--listen".to_owned()])];
    let expected =
        ["README.md:3: there is no scripts/gone", "README.md:4: ringecho has no option --gone"];
    assert_found(&real_commands(&tree, &programs), &expected);
}

#[test]
fn the_server_does_not_look_at_the_wall_clock() {
    assert_none(&wall_clocks(&Tree::here()));
}

#[test]
fn a_wall_clock_is_found() {
    let text = "//! No SystemTime.\nuse std::time::SystemTime;\n#[cfg(test)]\nmod tests {\n    use std::time::UNIX_EPOCH;\n}\n";
    let tree = Tree::of(&[("src/engine/wait.rs", text), ("bench/src/main.rs", text)]);
    assert_found(&wall_clocks(&tree), &["src/engine/wait.rs:2: SystemTime"]);
}

#[test]
fn no_file_names_a_place_on_a_machine() {
    assert_none(&places(&Tree::here()));
}

#[test]
fn a_place_on_a_machine_is_found() {
    let text = format!("cd /{}/me\n/sys/{}/x\n", "home", "root");
    let tree = Tree::of(&[("docs/a.md", &text)]);
    assert_found(&places(&tree), &["docs/a.md:1: "]);
}
