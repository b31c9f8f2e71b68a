//! The attribute of `dewar-guest`, documented there.

use proc_macro::{TokenStream, TokenTree};

/// Makes `fn handle(request: Request) -> impl IntoResponse` the handler of an HTTP app's requests. One in a crate.
#[proc_macro_attribute]
pub fn http(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let exported =
        if arguments.is_empty() { function_name(&item).map(|name| export(&name)) } else { Err("this attribute takes no arguments") };
    let addition = exported.unwrap_or_else(|problem| format!("::core::compile_error!({problem:?});"));
    let addition: TokenStream = addition.parse().expect("the text above is Rust");
    [item, addition].into_iter().collect()
}

/// A host's linker does not take the names that a component's exports have, so tests on the host go without them.
fn export(handler: &str) -> String {
    format!(
        "#[cfg(not(target_family = \"wasm\"))]
        const _: () = ::dewar_guest::is_handler({handler});
        #[cfg(target_family = \"wasm\")]
        const _: () = {{
            struct App;
            impl ::dewar_guest::wasip2::exports::http::incoming_handler::Guest for App {{
                fn handle(
                    request: ::dewar_guest::wasip2::http::types::IncomingRequest,
                    response: ::dewar_guest::wasip2::http::types::ResponseOutparam,
                ) {{
                    ::dewar_guest::respond({handler}, request, response)
                }}
            }}
            ::dewar_guest::wasip2::http::proxy::export!(App with_types_in ::dewar_guest::wasip2);
        }};"
    )
}

fn function_name(item: &TokenStream) -> Result<String, &'static str> {
    let mut tokens = item.clone().into_iter();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word.to_string() == "async" => return Err("the handler cannot be async: it may block instead"),
            TokenTree::Ident(word) if word.to_string() == "fn" => {
                return match tokens.next() {
                    Some(TokenTree::Ident(name)) => Ok(name.to_string()),
                    _ => Err("a function without a name"),
                };
            }
            _ => {}
        }
    }
    Err("this attribute belongs on a function")
}
