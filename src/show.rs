//! `srp show`: a derivation or an object as JSON, with everything that is known of it.

use clap::Args;
use serde_json::{Map, Value, json};
use srp_store::{
    Action, Conflict, Derivation, InputKey, ObjectId, ObjectName, ReferenceKind, Role, StaticHash,
    Store,
};

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::target::{Target, realised, resolved_hash};
use crate::terminal;

/// Show a derivation or a store object as JSON
///
/// Of a derivation: what is done and from what, and, where it is realised, which objects it came
/// out as, on what route, and which files of its `libs` hide files of its `tools`. Of an object:
/// its tree, its references, and the derivation it came from.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// An attribute, the beginning of a derivation's hash, or a store path
    #[arg(value_name = "ATTR|HASH|PATH")]
    target: String,
}

const EXAMPLES: &str = "\
Examples:
  srp show stage1.aarch64-musl.musl
  srp show stage1.aarch64-musl.musl | jq -r '.inputs[].name'
  srp show $(srp realise stage1.aarch64-musl)";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let target = Target::parse(&arguments.target)?;
    let store = context.store_if_any()?;
    let value = match (&target, &store) {
        (Target::Object(object), Some(store)) => show_object(context, store, object)?,
        _ => {
            let (hash, derivation) = target
                .derivation(context, store.as_ref())?
                .ok_or_else(|| CommandError::user("its derivation is not in this store"))?;
            show_derivation(context, store.as_ref(), &target, hash, &derivation)?
        }
    };
    terminal::answer_json(&value)
}

fn show_object(context: &Context, store: &Store, name: &ObjectName) -> CommandResult<Value> {
    let info = store.info(&name.id)?;
    let object = &info.object;
    let mut references = Vec::new();
    for reference in &object.references {
        let path = match store.find_info(&reference.object)? {
            Some(info) => json!(store.object_path(&info.object.path_name())),
            None => Value::Null,
        };
        references.push(json!({ "kind": reference.kind, "id": reference.object, "path": path }));
    }
    let target = Target::Object(name.clone());
    let deriver = target.derivation(context, Some(store))?;
    let mut value = json!({
        "path": store.object_path(&object.path_name()),
        "name": object.name,
        "tree": object.tree,
        "size_bytes": info.size_bytes,
        "references": references,
        "permissions": object.permissions,
        "derivation": deriver.map(|(hash, _)| hash),
    });
    if let Some(manifest) = store.manifest(object)? {
        value["stage"] = json!({
            "build": manifest.build,
            "host": manifest.host,
            "root": manifest.root,
            "components": manifest
                .components
                .iter()
                .map(|(role, object)| json!({ "role": role, "path": store.object_path(object) }))
                .collect::<Vec<_>>(),
        });
        value["shadowed"] = stage_shadows(store, name)?;
    }
    Ok(value)
}

fn show_derivation(
    context: &Context,
    store: Option<&Store>,
    target: &Target,
    hash: StaticHash,
    derivation: &Derivation,
) -> CommandResult<Value> {
    let mut value = Map::new();
    if let Target::Attribute(attr) = target {
        value.insert("attribute".to_owned(), json!(attr));
    }
    value.insert("derivation".to_owned(), json!(hash));
    value.insert("name".to_owned(), json!(derivation.name));
    value.insert("version".to_owned(), json!(derivation.version));
    let (kind, action) = match &derivation.action {
        Action::Build(build) => ("build", serde_json::to_value(build)),
        Action::Fetch(fetch) => ("fetch", serde_json::to_value(fetch)),
        Action::Stage(stage) => ("stage", serde_json::to_value(stage)),
    };
    value.insert("action".to_owned(), json!(kind));
    let names = input_names(context, store, target, derivation)?;
    if let Value::Object(fields) = action.map_err(internal)? {
        for (name, field) in fields {
            let field = match name.as_str() {
                "inputs" => inputs(store, derivation, &names)?,
                "run" | "develop" => named_keys(&field, &names),
                _ => field,
            };
            value.insert(name, field);
        }
    }
    value.insert("advice".to_owned(), serde_json::to_value(&derivation.advice).map_err(internal)?);
    if let Some(store) = store {
        value.insert("realised".to_owned(), realisation(store, &hash, derivation)?);
    }
    Ok(Value::Object(value))
}

/// The name and version of each input.
type Names = std::collections::BTreeMap<StaticHash, (String, String)>;

fn input_names(
    context: &Context,
    store: Option<&Store>,
    target: &Target,
    derivation: &Derivation,
) -> CommandResult<Names> {
    let described = |hash, it: &Derivation| (hash, (it.name.to_string(), it.version.clone()));
    if let Target::Attribute(attr) = target {
        let goals = crate::goals::Goals::of(context, store, std::slice::from_ref(attr))?;
        let graph = goals.graph()?;
        return Ok(graph.derivations.iter().map(|(hash, it)| described(*hash, it)).collect());
    }
    let mut names = Names::new();
    for input in derivation.inputs() {
        let hash = input.key.derivation;
        if let Some(it) = store.map(|store| store.derivation(&hash)).transpose()?.flatten() {
            names.extend([described(hash, &it)]);
        }
    }
    Ok(names)
}

fn inputs(store: Option<&Store>, derivation: &Derivation, names: &Names) -> CommandResult<Value> {
    let mut list = Vec::new();
    for input in derivation.inputs() {
        let mut value = named_key(&input.key, names);
        value["role"] = json!(input.role);
        if let Some(store) = store
            && let Some(object) = realised(store, &input.key)?
        {
            value["path"] = json!(store.object_path(&object));
        }
        list.push(value);
    }
    Ok(Value::Array(list))
}

fn named_keys(keys: &Value, names: &Names) -> Value {
    let named = |key: &Value| match serde_json::from_value::<InputKey>(key.clone()) {
        Ok(key) => named_key(&key, names),
        Err(_) => key.clone(),
    };
    keys.as_array().map(|keys| keys.iter().map(named).collect()).unwrap_or_default()
}

fn named_key(key: &InputKey, names: &Names) -> Value {
    let mut value = json!({ "derivation": key.derivation, "output": key.output });
    if let Some((name, version)) = names.get(&key.derivation) {
        value["name"] = json!(name);
        value["version"] = json!(version);
    }
    value
}

/// What a derivation came out as here, on what route, and what its root hid; null if it didn't.
fn realisation(store: &Store, hash: &StaticHash, derivation: &Derivation) -> CommandResult<Value> {
    let Some(claim) = srp_builder::adopted(store, hash)? else { return Ok(Value::Null) };
    let mut outputs = Map::new();
    for (output, id) in &claim.outputs {
        let name = store.info(id)?.object.path_name();
        outputs.insert(output.to_string(), json!(store.object_path(&name)));
    }
    let mut value = json!({ "outputs": outputs, "resolved": claim.resolved });
    if let Some(realisation) = store.realisation(&claim.resolved)? {
        value["route"] = serde_json::to_value(&realisation.route).map_err(internal)?;
    }
    let log = resolved_hash(store, hash, derivation)?.map(|hash| store.log_path(&hash));
    value["log"] = json!(log.filter(|log| log.exists()));
    value["shadowed"] = match &derivation.action {
        Action::Build(_) if !derivation.is_cross() => {
            let role = |role: Role| -> CommandResult<Vec<ObjectId>> {
                let of_role = derivation.inputs().iter().filter(|input| input.role == role);
                let ids: Vec<ObjectId> =
                    of_role.filter_map(|input| claim.inputs.get(&input.key).copied()).collect();
                Ok(store.closure_ids(&ids, ReferenceKind::ALL)?)
            };
            // Inputs may have been removed since; then nothing can be said of their files.
            let ids: Vec<ObjectId> = claim.inputs.values().copied().collect();
            if store.contains_closure(&ids)? {
                let root = store.compose(&[role(Role::Libs)?, role(Role::Tools)?])?;
                shadows(root.shadowed())
            } else {
                Value::Null
            }
        }
        Action::Stage(_) => {
            let id = claim.outputs.values().next().expect("a stage has one output");
            stage_shadows(store, &store.info(id)?.object.path_name())?
        }
        _ => json!([]),
    };
    Ok(value)
}

fn stage_shadows(store: &Store, name: &ObjectName) -> CommandResult<Value> {
    let object = store.info(&name.id)?.object;
    Ok(shadows(store.compose_object(&object, ReferenceKind::RUN)?.shadowed()))
}

fn shadows(conflicts: &[Conflict]) -> Value {
    let one = |conflict: &Conflict| {
        json!({
            "path": format!("/{}", conflict.path),
            "used": conflict.first,
            "hidden": conflict.second,
        })
    };
    conflicts.iter().map(one).collect()
}

fn internal(error: serde_json::Error) -> CommandError {
    CommandError::chain(crate::error::ExitCode::Internal, error)
}
