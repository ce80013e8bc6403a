//! Expression: what all CEL here has in common: the functions there are, and how deep and long it may be.
//!
//! Invariant: an expression that was parsed can be evaluated on any stack of the runtime, and names nothing unknown.
//! Source: apiserver `pkg/authentication/cel`.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr, IdedExpr};
use cel::{Env, ExecutionError, extensions};

/// Bytes of an expression: more is a program, which belongs elsewhere.
pub(crate) const MAX_LENGTH: usize = 10 * 1024;

/// Brackets within each other, for the parser, whose recursion takes some 200 KiB of stack for each in a
/// debug build.
const MAX_BRACKETS: u16 = 32;

/// Bytes of stack to parse with: [`MAX_BRACKETS`] need a third of it, and so does leaving the longest chain
/// of the kind `a.b.c`, which nests without brackets. Threads of the runtime have less than either.
const STACK: usize = 32 * 1024 * 1024;

/// How deep an expression may nest. Evaluation recurses and takes some 50 KiB of stack a level in a debug
/// build, of the 2 MiB that a worker of the runtime has. Chains of `&&` and `||` are balanced by the parser
/// and count little.
pub(crate) const MAX_DEPTH: usize = 24;

/// Loops within each other. A token has at most some thousand items, and each further loop multiplies by
/// that.
const MAX_LOOPS: usize = 2;

/// Names that are no variables: CEL's types, and the first part of functions.
const NAMES: [&str; 16] = [
    "base64",
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "list",
    "map",
    "math",
    "null_type",
    "optional",
    "optional_type",
    "string",
    "type",
    "uint",
];

/// What CEL offers, with the extensions that kube-apiserver has too.
pub(crate) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    for extension in [extensions::strings, extensions::lists, extensions::encoders] {
        env.add_extension(extension).expect("no extension declares what another does");
    }
    Arc::new(env)
});

/// Parses an expression over these variables; `look` sees every part of it.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(
    source: &str,
    variables: &[&str],
    look: &mut (dyn FnMut(&IdedExpr) + Send),
) -> Result<IdedExpr, String> {
    if source.len() > MAX_LENGTH {
        return Err(format!("an expression has at most {MAX_LENGTH} bytes"));
    }
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().stack_size(STACK);
        let parser = parser.spawn_scoped(scope, || {
            let parser = ENV.parser().max_recursion_depth(MAX_BRACKETS);
            // The further lines show the source.
            let first =
                |error: cel::ParseErrors| error.to_string().lines().next().unwrap_or_default().to_owned();
            let parsed = parser.parse(source).map_err(first)?;
            Check { variables, look, bound: Vec::new(), loops: 0 }.expression(&parsed, 0)?;
            Ok(parsed)
        });
        let parsed = parser.map_err(|error| format!("have a thread to parse it: {error}"))?.join();
        parsed.unwrap_or_else(|_| Err("it makes the parser panic".to_owned()))
    })
}

/// The errors that explain themselves by names; of the others not even the text is told, since it has values.
pub(crate) fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(_)
        | ExecutionError::NoSuchOverload(_)
        | ExecutionError::UndeclaredReference(_)
        | ExecutionError::InvalidArgumentCount { .. }
        | ExecutionError::UnexpectedType { .. } => error.to_string(),
        _ => "its parts do not go together".to_owned(),
    }
}

/// Looks at every part of an expression once.
struct Check<'a, 'l> {
    variables: &'l [&'l str],
    look: &'l mut (dyn FnMut(&IdedExpr) + Send),
    bound: Vec<&'a str>,
    loops: usize,
}

// === impl Check ===

impl<'a> Check<'a, '_> {
    fn expression(&mut self, expression: &'a IdedExpr, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("an expression nests at most {MAX_DEPTH} deep"));
        }
        let depth = depth + 1;
        (self.look)(expression);
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => self.name(name)?,
            Expr::Select(select) => self.expression(&select.operand, depth)?,
            Expr::Call(call) => {
                for part in call.target.iter().map(Box::as_ref).chain(&call.args) {
                    self.expression(part, depth)?;
                }
            }
            Expr::List(list) => {
                for item in &list.elements {
                    self.expression(item, depth)?;
                }
            }
            Expr::Map(map) => self.entries(&map.entries, depth)?,
            Expr::Struct(structure) => self.entries(&structure.entries, depth)?,
            Expr::Comprehension(loop_) => {
                self.expression(&loop_.iter_range, depth)?;
                self.expression(&loop_.accu_init, depth)?;
                self.loops += 1;
                if self.loops > MAX_LOOPS {
                    return Err(format!("an expression has at most {MAX_LOOPS} loops within each other"));
                }
                let names = [Some(&loop_.iter_var), loop_.iter_var2.as_ref(), Some(&loop_.accu_var)];
                let outside = self.bound.len();
                self.bound.extend(names.into_iter().flatten().map(String::as_str));
                for part in [&loop_.loop_cond, &loop_.loop_step, &loop_.result] {
                    self.expression(part, depth)?;
                }
                self.bound.truncate(outside);
                self.loops -= 1;
            }
        }
        Ok(())
    }

    fn entries(&mut self, entries: &'a [IdedEntryExpr], depth: usize) -> Result<(), String> {
        for entry in entries {
            match &entry.expr {
                EntryExpr::StructField(field) => self.expression(&field.value, depth)?,
                EntryExpr::MapEntry(entry) => {
                    self.expression(&entry.key, depth)?;
                    self.expression(&entry.value, depth)?;
                }
            }
        }
        Ok(())
    }

    fn name(&self, name: &str) -> Result<(), String> {
        let known = self.variables.contains(&name) || NAMES.contains(&name) || self.bound.contains(&name);
        if known { Ok(()) } else { Err(format!("undeclared reference to {name:?}")) }
    }
}
