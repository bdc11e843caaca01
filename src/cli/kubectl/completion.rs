//! `kubectl leasehold completion`: for a shell, of the binary under its name as a plugin; and what kubectl's own
//! completion asks a plugin: a program `kubectl_complete-leasehold`, for which a link to the binary will do.

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::output::print;
use super::{End, LINK, Plugin};

/// What kubectl calls to complete the plugin's arguments.
pub(super) const COMPLETER: &str = "kubectl_complete-leasehold";
/// How kubectl is told that no files are meant.
const NO_FILES: &str = ":4";

/// Prints a completion.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &CompletionArgs) -> anyhow::Result<End> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Plugin::command(), LINK, &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(End::Done)
}

/// What kubectl shows for these words, of which the last is being written: a candidate a line, with what it is.
pub(super) fn for_kubectl(words: &[String]) -> anyhow::Result<()> {
    let mut plugin = Plugin::command();
    plugin.build();
    let lines = candidates(&plugin, words).into_iter().map(|line| line + "\n");
    print(&(lines.collect::<String>() + NO_FILES + "\n"))
}

fn candidates(plugin: &Command, words: &[String]) -> Vec<String> {
    let (last, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let command = before.iter().find_map(|word| plugin.find_subcommand(word));
    let line = |name: String, what: Option<&clap::builder::StyledStr>| {
        let what = what.map(ToString::to_string).unwrap_or_default();
        format!("{name}\t{}", what.lines().next().unwrap_or_default())
    };
    let flags = command.unwrap_or(plugin).get_arguments().filter_map(|argument| {
        let name = format!("--{}", argument.get_long()?);
        Some(line(name, argument.get_help()))
    });
    let commands = plugin.get_subcommands().map(|command| line(command.get_name().to_owned(), command.get_about()));
    let all: Vec<String> = match (last.starts_with('-'), command) {
        (true, _) => flags.collect(),
        (false, None) => commands.collect(),
        (false, Some(_)) => Vec::new(),
    };
    all.into_iter().filter(|candidate| candidate.starts_with(last)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        let mut plugin = Plugin::command();
        plugin.build();
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let name = |line: String| line.split('\t').next().unwrap_or_default().to_owned();
        candidates(&plugin, &words).into_iter().map(name).collect()
    }

    #[test]
    fn kubectl_is_told_commands_and_flags() {
        assert_eq!(names(&["rel"]), ["release"]);
        assert_eq!(names(&["-n", "shop", "wa"]), ["waiters"]);
        assert_eq!(names(&["acquire", "a", "--sh"]), ["--shared"]);
        assert_eq!(names(&["acquire", "--names"]), ["--namespace"], "flags of all commands, too");
        assert!(names(&["status", ""]).is_empty());
        assert!(names(&[""]).contains(&"force-release".to_owned()));
    }
}
