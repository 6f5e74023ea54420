//! What of a MeshHTTPRoute is accepted and not done.

use super::{Filter, HeaderModifier, MeshHttpRoute};
use crate::kinds::http_headers::is_of_connection;
use crate::target_ref::TargetRef;

impl MeshHttpRoute {
    pub(super) fn warn(&self, out: &mut Vec<String>) {
        out.extend(self.target_ref.as_ref().and_then(TargetRef::name_warning));
        for (i, to) in self.to.iter().flatten().enumerate() {
            for (j, rule) in to.rules.iter().enumerate() {
                let path = format!("spec.to[{i}].rules[{j}].default");
                for (k, filter) in rule.default.filters.iter().flatten().enumerate() {
                    filter.warn(&format!("{path}.filters[{k}]"), out);
                }
            }
        }
    }
}

impl Filter {
    fn warn(&self, path: &str, out: &mut Vec<String>) {
        let modifiers = [
            ("requestHeaderModifier", &self.request_header_modifier),
            ("responseHeaderModifier", &self.response_header_modifier),
        ];
        for (field, modifier) in modifiers {
            modifier.iter().for_each(|modifier| modifier.warn(&format!("{path}.{field}"), out));
        }
    }
}

impl HeaderModifier {
    fn warn(&self, path: &str, out: &mut Vec<String>) {
        let set = self.set.iter().map(|header| header.name.as_str());
        let all = set.chain(self.add.iter().map(|header| header.name.as_str()));
        let all = all.chain(self.remove.iter().map(String::as_str));
        out.extend(all.filter(|name| is_of_connection(name)).map(|name| {
            format!("{path} leaves {name} as it is: it belongs to the connection, the body or the host")
        }));
    }
}
