//! What a command line is described by elsewhere: completions for shells, and man pages.

use clap::Command;
use clap::error::ErrorKind;
use clap_complete::Shell;
use clap_mangen::Man;

/// The script that completes the options of `command` in a shell.
pub fn completions(shell: Shell, mut command: Command) -> String {
    let program = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut script);
    String::from_utf8(script).expect("text")
}

/// The man page of a program, or of one of its commands, as man(7) has it.
///
/// # Errors
///
/// A usage error if the program has no such command.
pub fn man_page(mut command: Command, of: Option<&str>) -> Result<String, clap::Error> {
    let source = format!("{} {}", command.get_name(), command.get_version().unwrap_or_default());
    command.build();
    let described = match of {
        None => command,
        Some(name) => match command.find_subcommand(name).filter(|it| !it.is_hide_set()) {
            Some(found) => found.clone(),
            None => {
                let names =
                    command.get_subcommands().filter(|it| !it.is_hide_set()).map(Command::get_name);
                let text = format!(
                    "there is no command '{name}'; write one of {}",
                    names.collect::<Vec<_>>().join(", ")
                );
                return Err(command.error(ErrorKind::InvalidSubcommand, text));
            }
        },
    };
    let mut page = Vec::new();
    Man::new(described).source(source.trim_end()).render(&mut page).expect("memory can be written");
    Ok(String::from_utf8(page).expect("text"))
}
