//! How a pod says that it waits for locks: the names, and the grammar of the annotation.

use k8s_openapi::api::core::v1::Pod;

use super::claim::MAX_LOCKS;
use super::{LockMode, LockRequest, MAX_PERMITS};

/// The label of a pod that waits for a lock, and the name of its scheduling gate. The label's value is the lock.
pub const LOCK: &str = "leasehold.dev/lock";
/// The annotation with the whole list, where one name doesn't say it: `name[=permits][:shared|exclusive]`, with commas.
pub const LOCKS: &str = "leasehold.dev/locks";
/// The token of each lock is in an annotation of this and the lock's name; that of the first one also in
/// [`super::election::FENCING_TOKEN`].
pub const TOKEN_OF: &str = "fencing-token.leasehold.dev/";
/// How many seconds the pod waits before it fails; 0: it fails where the lock isn't free.
pub const WAIT_TIMEOUT: &str = "leasehold.dev/wait-timeout-seconds";
/// How many seconds a pod that holds may take to start before it is deleted, so that others get the lock.
pub const START_TIMEOUT: &str = "leasehold.dev/start-timeout-seconds";
/// The holder id of a hold that was taken back before the pod was let go: no older write can let it go by that one.
pub const WITHDRAWN: &str = "leasehold.dev/withdrawn";

/// What a pod waits for, from its label and, if it has one, its annotation. The policies check the same at admission.
///
/// # Errors
/// What is wrong, in words for people.
pub fn locks(label: &str, annotation: Option<&str>) -> Result<Vec<LockRequest>, String> {
    let Some(list) = annotation else {
        return Ok(vec![LockRequest::new(name(label)?)]);
    };
    let requests = list.split(',').map(|one| request(one.trim())).collect::<Result<Vec<_>, _>>()?;
    if requests.len() > MAX_LOCKS {
        return Err(format!("{LOCKS} names {} locks, and {MAX_LOCKS} are the most", requests.len()));
    }
    let twice =
        requests.iter().enumerate().find(|(at, one)| requests[..*at].iter().any(|other| other.name == one.name));
    if let Some((_, twice)) = twice {
        return Err(format!("{LOCKS} names {} twice", twice.name));
    }
    if requests.iter().all(|one| one.name != label) {
        return Err(format!("{LOCKS} is the whole list, so that {label}, the lock of the label {LOCK}, must be in it"));
    }
    Ok(requests)
}

/// Whether our gate keeps it from being scheduled.
pub fn is_gated(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().any(|gate| gate.name == LOCK)
}

fn request(text: &str) -> Result<LockRequest, String> {
    let (rest, mode) = match text.split_once(':') {
        None => (text, None),
        Some((rest, "shared")) => (rest, Some(LockMode::Shared)),
        Some((rest, "exclusive")) => (rest, Some(LockMode::Exclusive)),
        Some((_, mode)) => return Err(format!("{LOCKS}: {mode:?} is no mode: write shared or exclusive")),
    };
    let (text, permits) = match rest.split_once('=') {
        None => (rest, None),
        Some((_, permits)) if mode.is_some() => {
            return Err(format!(
                "{LOCKS}: write permits ({permits}) or a mode, not both: a mode doesn't count permits"
            ));
        }
        Some((text, permits)) => (text, Some(number(permits)?)),
    };
    Ok(LockRequest { name: name(text)?, permits, mode })
}

fn number(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_PERMITS).contains(number));
    number.ok_or_else(|| format!("{LOCKS}: {text:?} is no number of permits: write 1 to {MAX_PERMITS}"))
}

fn name(text: &str) -> Result<String, String> {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = (1..=63).contains(&text.len()) && text.chars().all(|c| inside(c) || "-.".contains(c));
    if fits && text.starts_with(inside) && text.ends_with(inside) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name of a lock: write small letters, digits, - and ., at most 63"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_alone_is_one_permit_of_one_lock() {
        assert_eq!(locks("db.migrate-1", None), Ok(vec![LockRequest::new("db.migrate-1")]));
    }

    #[test]
    fn a_list_has_permits_or_modes() {
        let of = |name: &str, permits, mode| LockRequest { name: name.to_owned(), permits, mode };
        let expected = vec![
            of("a", None, None),
            of("b", Some(3), None),
            of("c", None, Some(LockMode::Shared)),
            of("d", None, Some(LockMode::Exclusive)),
        ];
        assert_eq!(locks("a", Some("a, b=3,c:shared,d:exclusive")), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (list, says) in [
            ("b", "must be in it"),
            ("a,a=2", "names a twice"),
            ("a=0", "no number of permits"),
            ("a=many", "no number of permits"),
            ("a=2:shared", "not both"),
            ("a:upgradable", "no mode"),
            ("a,,b", "no name"),
            ("", "no name"),
            ("a,B", "no name"),
            ("a,-b", "no name"),
            ("a,b,c,d,e,f,g,h,i", "8 are the most"),
        ] {
            let error = locks("a", Some(list)).expect_err(list);
            assert!(error.contains(says), "{list}: {error}");
        }
        assert!(locks("Wrong", None).is_err());
    }
}
