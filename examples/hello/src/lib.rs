use dewar_guest::Request;

#[dewar_guest::http]
fn handle(request: Request) -> String {
    let instance = std::env::var("CF_INSTANCE_INDEX").unwrap_or_else(|_| "0".to_owned());
    format!("Hello from {} (instance {instance})\n", request.uri().path())
}
