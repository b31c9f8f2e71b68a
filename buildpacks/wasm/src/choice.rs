//! Which file of a package is the app, and how it is called.

use std::path::{Component, Path};

use dewar_guest::buildpack::{Package, World};

use crate::procfile::{self, Procfile};
use crate::settings::{self, AppSettings, Settings};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct App {
    /// Relative to the package.
    pub(crate) file: String,
    pub(crate) processes: Vec<(String, String)>,
    pub(crate) world: Option<World>,
}

/// None when nothing says that the package is for this buildpack.
pub(crate) fn choose(package: &Package, settings: Settings, procfile: Procfile) -> Result<Option<App>, String> {
    let AppSettings { file, arguments, world } = settings.app;
    let world = world.map(World::from);
    if (file.is_some() || arguments.is_some())
        && let Some(web) = procfile.web()
    {
        return Err(format!("both {} and the {} (web: {web}) say how the app is called: keep one", settings::NAME, procfile::NAME));
    }
    if let Some(web) = procfile.web() {
        let program = first_word(web)?;
        if !is_module(&program) {
            let problem = format!("the {} starts {program}, which is no .wasm or .wat file", procfile::NAME);
            return if has_modules(package) { Err(problem) } else { Ok(None) };
        }
        let file = check(package, &program, procfile::NAME)?;
        return Ok(Some(App { file, processes: procfile.0.into_iter().collect(), world }));
    }
    let (file, program) = match file {
        Some(named) => (check(package, &named, settings::NAME)?, named),
        None => match only_module(package)? {
            Some(file) => (file.clone(), file),
            None => return Ok(None),
        },
    };
    let words = std::iter::once(program.as_str()).chain(arguments.iter().flatten().map(String::as_str));
    let web = shlex::try_join(words).map_err(|_| format!("{}: an argument has a NUL in it", settings::NAME))?;
    let mut processes: Vec<_> = procfile.0.into_iter().collect();
    processes.push(("web".to_owned(), web));
    Ok(Some(App { file, processes, world }))
}

/// Whether there is something for this buildpack at the top of the package. A site may have modules among its files and isn't for it.
pub(crate) fn has_modules(package: &Package) -> bool {
    !is_site(package) && modules(package).next().is_some()
}

fn modules(package: &Package) -> impl Iterator<Item = &str> {
    package.files.iter().map(|file| file.path.as_str()).filter(|path| !path.contains('/') && is_module(path))
}

fn is_module(path: &str) -> bool {
    path.ends_with(".wasm") || path.ends_with(".wat")
}

fn is_site(package: &Package) -> bool {
    package.files.iter().any(|file| matches!(file.path.as_str(), "index.html" | "Staticfile"))
}

fn only_module(package: &Package) -> Result<Option<String>, String> {
    if is_site(package) {
        return Ok(None);
    }
    let modules: Vec<_> = modules(package).collect();
    match modules.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).to_owned())),
        several => Err(format!(
            "the package has several .wasm and .wat files: {}. Name the app in the {} (web: {}) or in {} ([app] file = \"{}\")",
            several.join(", "),
            procfile::NAME,
            several[0],
            settings::NAME,
            several[0],
        )),
    }
}

fn first_word(command: &str) -> Result<String, String> {
    let words = shlex::split(command).ok_or_else(|| format!("the {} has a quote in web that does not end", procfile::NAME))?;
    words.into_iter().next().ok_or_else(|| format!("the {} has an empty command for web", procfile::NAME))
}

/// The path of a file as the package lists it.
fn check(package: &Package, named: &str, by: &str) -> Result<String, String> {
    let components = Path::new(named).components().filter(|component| *component != Component::CurDir);
    let path = components.collect::<std::path::PathBuf>().to_string_lossy().into_owned();
    if package.files.iter().any(|file| file.path == path) {
        if is_module(&path) { Ok(path) } else { Err(format!("{named}, which {by} names, is no .wasm or .wat file")) }
    } else if package.left_out.contains(&path) {
        Err(format!("{named}, which {by} names, is a link: the app has to be a file of the package"))
    } else {
        Err(format!("{named}, which {by} names, is not in the package"))
    }
}

#[cfg(test)]
mod tests {
    use dewar_guest::buildpack::PackageFile;

    use super::*;

    fn package(files: &[&str]) -> Package {
        let files = files.iter().map(|path| PackageFile { path: (*path).to_owned(), size: 1 }).collect();
        Package { files, left_out: vec!["link.wasm".to_owned()], ..Package::default() }
    }

    fn chosen(files: &[&str], toml: &str, yaml: &str) -> Result<Option<App>, String> {
        let procfile = if yaml.is_empty() { Procfile::default() } else { Procfile::parse(yaml).unwrap() };
        choose(&package(files), Settings::parse(toml).unwrap(), procfile)
    }

    fn app(file: &str, web: &str) -> Result<Option<App>, String> {
        Ok(Some(App { file: file.to_owned(), processes: vec![("web".to_owned(), web.to_owned())], world: None }))
    }

    #[test]
    fn the_only_module_is_the_app() {
        assert_eq!(chosen(&["hello.wasm", "data.txt", "lib/other.wasm"], "", ""), app("hello.wasm", "hello.wasm"));
        assert_eq!(chosen(&["hello.wat"], "", ""), app("hello.wat", "hello.wat"));
    }

    #[test]
    fn settings_and_procfile_name_the_app() {
        let files = ["a.wasm", "b.wasm", "build/c.wasm"];
        assert_eq!(chosen(&files, "", "web: b.wasm --x 'y z'"), app("b.wasm", "b.wasm --x 'y z'"));
        assert_eq!(
            chosen(&files, "[app]\nfile = \"./build/c.wasm\"\narguments = [\"y z\"]", ""),
            app("build/c.wasm", "./build/c.wasm 'y z'")
        );
        assert_eq!(chosen(&["a.wasm"], "[app]\narguments = [\"x\"]", ""), app("a.wasm", "a.wasm x"));
        let with_world = chosen(&["a.wasm"], "[app]\nworld = \"command\"", "web: a.wasm").unwrap().unwrap();
        assert_eq!(with_world.world, Some(World::Command));
        let with_worker = chosen(&["a.wasm"], "", "worker: a.wasm work").unwrap().unwrap();
        assert_eq!(with_worker.processes, [("worker".to_owned(), "a.wasm work".to_owned()), ("web".to_owned(), "a.wasm".to_owned())]);
    }

    #[test]
    fn what_is_for_others_is_left_to_them() {
        for (files, yaml) in [
            (&["main.py"][..], ""),
            (&["lib/a.wasm"], ""),
            (&["index.html", "game.wasm"], ""),
            (&["Staticfile", "game.wasm"], ""),
            (&["Gemfile"], "web: bundle exec rackup"),
        ] {
            assert_eq!(chosen(files, "", yaml), Ok(None), "{files:?}");
        }
        assert_eq!(chosen(&["index.html", "a.wasm"], "", "web: a.wasm"), app("a.wasm", "a.wasm"));
    }

    #[test]
    fn mistakes_are_named() {
        for (files, toml, yaml, error) in [
            (&["b.wat", "a.wasm"][..], "", "", "several .wasm and .wat files: b.wat, a.wasm. Name"),
            (&["a.wasm"], "", "web: b.wasm", "b.wasm, which Procfile names, is not in the package"),
            (&["a.wasm"], "", "web: bundle exec", "the Procfile starts bundle, which is no .wasm or .wat file"),
            (&["a.wasm"], "", "web: \"a.wasm 'x\"", "a quote in web that does not end"),
            (&["a.wasm"], "", "web: ''", "an empty command for web"),
            (&["a.wasm"], "[app]\nfile = \"a.wasm\"", "web: a.wasm", "both dewar.toml and the Procfile"),
            (&["a.wasm"], "[app]\nfile = \"../a.wasm\"", "", "../a.wasm, which dewar.toml names, is not in the package"),
            (&["a.wasm"], "[app]\nfile = \"/a.wasm\"", "", "/a.wasm, which dewar.toml names, is not in the package"),
            (&["a.wasm"], "[app]\nfile = \"link.wasm\"", "", "is a link"),
            (&["a.wasm", "b.txt"], "[app]\nfile = \"b.txt\"", "", "b.txt, which dewar.toml names, is no .wasm or .wat file"),
        ] {
            let refusal = chosen(files, toml, yaml).unwrap_err();
            assert!(refusal.contains(error), "{refusal}");
        }
    }
}
