//! Documents from files, directories and standard input. Everything wrong with any of them is told at once.

use super::kind;
use crate::failure::{Exit, Failure, Result};
use meridian_core::{Key, Scope, document};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One document, and where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) place: String,
    pub(crate) key: Key,
    pub(crate) value: Value,
}

impl Document {
    pub(crate) fn shown(&self) -> String {
        kind::shown(self.key.kind, &self.key.mesh, &self.key.name)
    }

    pub(crate) fn path(&self) -> String {
        kind::path(self.key.kind, Some(&self.key.mesh), &self.key.name)
    }
}

/// Reads every source, in the order in which its kinds depend on each other (a Mesh before what is in it). `mesh` is
/// for documents that name none.
pub(crate) fn read(
    sources: &[String],
    mesh: Option<&str>,
    variables: &[(String, String)],
) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut wrong = Vec::new();
    for source in sources {
        for (place, text) in texts(source)? {
            let text = match filled(&text, variables) {
                Ok(text) => text,
                Err(missing) => {
                    wrong.push(format!("{place}: {missing}; give it with -v {}=VALUE", missing.0));
                    continue;
                }
            };
            match document::split(&text) {
                Ok(values) => take(&place, values, mesh, &mut documents, &mut wrong),
                Err(problem) => wrong.push(format!("{place}: {}", described(&problem))),
            }
        }
    }
    wrong.extend(repeated(&documents));
    if !wrong.is_empty() {
        let count = wrong.len();
        let what = format!("{count} of the documents can't be used; nothing was changed");
        return Err(wrong.into_iter().fold(Failure::new(Exit::Data, what), Failure::detail));
    }
    if documents.is_empty() {
        return Err(Failure::new(Exit::Data, format!("there is no document in {}", sources.join(", "))));
    }
    let order =
        |document: &Document| meridian_core::kinds().iter().position(|info| info.kind == document.key.kind);
    documents.sort_by_key(order);
    Ok(documents)
}

fn filled<'a>(
    text: &'a str,
    variables: &[(String, String)],
) -> std::result::Result<Cow<'a, str>, document::MissingVariable> {
    if variables.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    document::substitute(text, variables).map(Cow::Owned)
}

fn take(
    place: &str,
    values: Vec<Value>,
    mesh: Option<&str>,
    documents: &mut Vec<Document>,
    wrong: &mut Vec<String>,
) {
    let several = values.len() > 1;
    for (index, mut value) in values.into_iter().enumerate() {
        let place = if several { format!("{place}, document {}", index + 1) } else { place.to_owned() };
        match document::key_of(&value) {
            Ok(mut key) => {
                if let Some(mesh) =
                    mesh.filter(|_| key.kind.info().scope == Scope::Mesh && !names_a_mesh(&value))
                {
                    mesh.clone_into(&mut key.mesh);
                    if let Some(fields) = value.as_object_mut() {
                        fields.insert("mesh".to_owned(), mesh.into());
                    }
                }
                documents.push(Document { place, key, value });
            }
            Err(problem) => wrong.push(format!("{place}: {}", described(&problem))),
        }
    }
}

fn names_a_mesh(value: &Value) -> bool {
    value.get("mesh").is_some_and(|mesh| !mesh.is_null())
        || value.pointer("/metadata/labels/kuma.io~1mesh").is_some()
}

/// The same resource twice: which of the two should hold?
fn repeated(documents: &[Document]) -> Vec<String> {
    let mut seen: BTreeMap<&Key, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for document in documents {
        if let Some(first) = seen.insert(&document.key, &document.place) {
            wrong.push(format!("{}: {} is also in {first}", document.place, document.shown()));
        }
    }
    wrong
}

fn described(problem: &document::Problem) -> String {
    let mut text = problem.to_string();
    for violation in &problem.violations {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.reason));
    }
    text
}

/// The texts of one source, each with its name.
fn texts(source: &str) -> Result<Vec<(String, String)>> {
    if source == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(Exit::Input, format!("can't read standard input: {error}")))?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    let path = Path::new(source);
    let files = if path.is_dir() { files_in(path)? } else { vec![path.to_owned()] };
    files
        .into_iter()
        .map(|path| Ok((path.display().to_string(), crate::connection::read_file(&path)?)))
        .collect()
}

/// YAML and JSON files of a directory and of those below it, sorted.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::Input, format!("can't read {}: {error}", directory.display()))
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) -> String {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_directory_is_read_whole_and_a_mesh_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "a/perm.yml",
            "type: MeshTrafficPermission\nname: p\nmesh: m\nspec: {}\n---\ntype: Zone\nname: east\n",
        );
        write(dir.path(), "b.json", "{\"type\": \"Mesh\", \"name\": \"m\"}");
        write(dir.path(), "README.md", "not a document");
        let documents = read(&[dir.path().display().to_string()], None, &[]).unwrap();
        let shown: Vec<String> = documents.iter().map(Document::shown).collect();
        assert_eq!(shown, ["Mesh m", "Zone east", "MeshTrafficPermission m/p"]);
        assert!(documents[2].place.ends_with("perm.yml, document 1"), "{}", documents[2].place);
        assert_eq!(documents[2].path(), "/meshes/m/meshtrafficpermissions/p");
    }

    #[test]
    fn a_mesh_on_the_command_line_is_for_documents_that_name_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(
            dir.path(),
            "x.yaml",
            "type: Secret\nname: a\n---\ntype: Secret\nname: b\nmesh: own\n---\ntype: Zone\nname: z\n",
        );
        let documents = read(&[file], Some("given"), &[]).unwrap();
        let meshes: Vec<(&str, Option<&Value>)> = documents
            .iter()
            .map(|document| (document.key.mesh.as_str(), document.value.get("mesh")))
            .collect();
        assert_eq!(meshes, [("", None), ("given", Some(&"given".into())), ("own", Some(&"own".into()))]);
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            write(dir.path(), "1.yaml", "type: Nonsense\nname: x\n---\ntype: Mesh\n"),
            write(dir.path(), "2.yaml", "a: [1\n"),
            write(dir.path(), "3.yaml", "type: Mesh\nname: twice\n"),
            write(dir.path(), "4.yaml", "type: Mesh\nname: twice\n"),
        ];
        let failure = read(&files, None, &[]).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.exit, Exit::Data);
        assert!(text.contains("4 of the documents") && text.contains("nothing was changed"), "{text}");
        for part in ["1.yaml, document 1", "1.yaml, document 2", "2.yaml", "4.yaml: Mesh twice is also in"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_missing_file_and_an_empty_one_are_different() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&["/nowhere/x.yaml".to_owned()], None, &[]).unwrap_err().exit, Exit::Input);
        let empty = write(dir.path(), "empty.yaml", "# nothing\n");
        assert_eq!(read(&[empty], None, &[]).unwrap_err().exit, Exit::Data);
    }
}
