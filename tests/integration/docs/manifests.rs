//! Every manifest of our kinds and of Kubernetes' workloads in the documentation is accepted by the API server.

use super::page::Page;
use crate::support::{Scratch, TestNamespace};

const KINDS: [&str; 4] =
    ["apiVersion: leasehold.dev/", "apiVersion: v1\n", "apiVersion: apps/v1\n", "apiVersion: batch/v1\n"];

/// What the API server would say, with every field known.
async fn dry_run(test: &TestNamespace, manifest: &str) -> Result<String, String> {
    let folder = Scratch::new("manifest");
    let file = folder.write("manifest.yaml", manifest);
    test.kubectl(&format!("apply --server-side --dry-run=server --validate=strict -f {}", file.display())).await
}

#[tokio::test]
async fn manifests_are_accepted() {
    let test = TestNamespace::new().await;
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in Page::all() {
        for block in page.blocks().into_iter().filter(|block| block.language == "yaml") {
            let manifests = block.text.split("---\n").filter(|text| KINDS.iter().any(|kind| text.contains(kind)));
            for manifest in manifests {
                // No other test has such a namespace.
                let here = manifest.replace("namespace: shop", &format!("namespace: {}", test.name()));
                count += 1;
                if let Err(refusal) = dry_run(&test, &here).await {
                    wrong.push(format!("{}: {refusal}\n{manifest}", page.at(block.line)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 5, "only {count} manifests were found");
}

#[tokio::test]
async fn a_manifest_with_a_mistake_is_refused() {
    let test = TestNamespace::new().await;
    let lock = |spec: &str| {
        let head = "apiVersion: leasehold.dev/v1alpha1\nkind: DistributedLock\nmetadata: {name: a}\n";
        format!("{head}spec: {spec}\n")
    };
    assert!(dry_run(&test, &lock("{permits: 2}")).await.is_ok());
    for mistake in ["{permits: 0}", "{permit: 2}"] {
        assert!(dry_run(&test, &lock(mistake)).await.is_err(), "{mistake}");
    }
}
