"""From a policy's [firewall] section to findings and one nftables transaction. Nothing is changed; no root.

Run: python examples/firewall-plan.py [POLICY.toml]
"""

import sys
from pathlib import Path

from tidegate.firewall.checks import check_ruleset
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.policy.document import parse_policy

EXAMPLE = """
[policy]
version = 1

[firewall.management]
peers = ["192.0.2.0/24", "2001:db8:1::/64"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = []

[firewall.services.web]
protocol = "tcp"
ports = [443]
peers = ["any"]
"""

policy = parse_policy(Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else EXAMPLE)
if policy.firewall is None:
    sys.exit("the policy has no [firewall] section")
ruleset = plan_ruleset(policy.firewall)
for finding in check_ruleset(ruleset):
    print(f"# {finding.severity}: {finding.message} [{finding.code}]")
print(encode_ruleset(ruleset))
