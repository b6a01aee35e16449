"""Everything the firewall refuses or fails at, with what to do about it."""

from __future__ import annotations

from tidegate.base.errors import Fault, Misuse, Rejected


class BadPeer(Rejected):
    code = "firewall.policy.peer"
    advice = 'Write an address ("192.0.2.7"), a network without host bits ("192.0.2.0/24", "2001:db8::/64") or "any".'


class BadPort(Rejected):
    code = "firewall.policy.port"
    advice = 'Write a port from 1 to 65535 or a rising range such as "6000-6010".'


class UnknownService(Rejected):
    code = "firewall.policy.unknown-service"
    advice = "Name a service that the same policy defines under [firewall.services] or [firewall.egress.services]."


class ManagementCut(Rejected):
    code = "firewall.check.management-cut"
    advice = "Give [firewall.management] the peers and the service by which this device is managed."


class SessionCut(Rejected):
    code = "firewall.check.session-cut"
    advice = (
        "Add the named address to [firewall.management] peers, or apply from an address that the policy allows; "
        "`--cut ADDR` gives the session up."
    )


class SetBudget(Rejected):
    code = "firewall.check.set-budget"
    advice = "Lower limit.sources or bans.max, shorten the peer lists, or raise firewall.set_budget if memory allows."


class NoNftables(Fault):
    code = "firewall.kernel.no-nftables"
    advice = "Use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, or load its module; nothing was changed."


class NftRefused(Fault):
    code = "firewall.nft.refused"
    advice = (
        "Read nftables' own message; nothing was changed. `tidegate doctor` lists kernel features that are missing."
    )


class GuardFailed(Fault):
    code = "firewall.commit.guard"
    advice = "The rollback process could not be started, so nothing was changed; read guard.log in the state folder."


class SnapshotFailed(Fault):
    code = "firewall.commit.snapshot"
    advice = (
        "The ruleset in force cannot be saved in a form that loads again, so nothing was changed; remove hand edits."
    )


class ProbeFailed(Fault):
    code = "firewall.commit.probe-failed"
    advice = "The new policy cut something that must work and was rolled back; correct the policy and apply it again."


class Expired(Fault):
    code = "firewall.commit.expired"
    advice = "The change was rolled back before it was confirmed; apply it again with a longer confirm_timeout_s."


class Changed(Fault):
    code = "firewall.commit.changed"
    advice = "The ruleset in force is not the one that was applied; roll back, find who changed it, apply again."


class RestoreFailed(Fault):
    code = "firewall.commit.restore-failed"
    advice = "Load rollback.nft from the state folder with `nft -f`, or reboot: boot loads the last confirmed ruleset."


class ChangePending(Misuse):
    code = "firewall.commit.pending"
    advice = "Run `tidegate firewall confirm` or `tidegate firewall rollback` first."


class NothingPending(Misuse):
    code = "firewall.commit.nothing-pending"
    advice = "There is no unconfirmed change: it was confirmed, or it was rolled back in time."


class BadTimeout(Misuse):
    code = "firewall.commit.timeout"
    advice = "Give 1 to 3600 seconds."


class StateCorrupt(Rejected):
    code = "firewall.state.corrupt"
    advice = "The stored ruleset does not match its digest; apply the signed policy again."


class BanNever(Rejected):
    code = "firewall.ban.never"
    advice = "The address is on the policy's bans.never list; change the policy if it must be banned."


class BanManagement(Rejected):
    code = "firewall.ban.management"
    advice = "The address may manage this device; narrow [firewall.management] peers if it must be banned."


class BanLoopback(Rejected):
    code = "firewall.ban.loopback"
    advice = "Ban the address that the traffic really comes from; loopback, unspecified and multicast are no sources."


class BanAddress(Rejected):
    code = "firewall.ban.address"
    advice = "Give one IPv4 or IPv6 address, or a prefix without host bits; no zone."


class BanDuration(Misuse):
    code = "firewall.ban.duration"
    advice = "Give 1 second to 30 days; refuse an address for good in the policy instead."


class BanFull(Fault):
    code = "firewall.ban.full"
    advice = "Raise bans.max, or let bans expire sooner; the bans in force stay."


class NotBanned(Rejected):
    code = "firewall.ban.not-banned"
    advice = "List the bans with `tidegate firewall bans`."


class BanTableMissing(Fault):
    code = "firewall.ban.no-table"
    advice = "Apply a policy with a [firewall] section first; it creates the table of bans."


# -- bans --


class BanPrefix(Rejected):
    code = "firewall.ban.prefix"
    advice = (
        "Ban /4 to /32 of IPv4; of IPv6 /20 to /32, /36 to /48, /52 to /64 or /116 to /128: a prefix of another length "
        "would become too many elements; take the next longer or shorter of these."
    )


class BanFile(Rejected):
    code = "firewall.ban.file"
    advice = "Write one address or prefix a line; `#` begins a comment. Nothing of the file was banned."


class BanStoreForeign(Rejected):
    code = "firewall.ban.store"
    advice = "The file bans.journal in the state folder is not ours or of a newer version; move it away to begin anew."


class KernelRefused(Fault):
    code = "firewall.netlink.refused"
    advice = "Read the system's message; nothing was changed. `tidegate doctor` lists kernel features that are missing."


class UnknownZone(Rejected):
    code = "firewall.policy.zone"
    advice = "Define the zone under [firewall.zones]; an interface belongs to one zone at most."


class BadRule(Rejected):
    code = "firewall.policy.rule"
    advice = "Change the rule that the message names; docs/firewall.md says what goes with what."


class BadLink(Rejected):
    code = "firewall.policy.link"
    advice = "Correct the layer-2 rule that the message names; docs/firewall-link.md has the names of ethertypes."


# -- fields --


class BadField(Rejected):
    code = "firewall.policy.field"
    advice = "Correct the field rule that the message names; docs/formats/fields.md lists every protocol's keys."


# -- why --


class BadQuestion(Misuse):
    code = "firewall.why.question"
    advice = "Ask as `why SOURCE tcp/PORT`, `why SOURCE DESTINATION udp/PORT`, `why self DESTINATION ping`."


class NoRoute(Fault):
    code = "firewall.why.no-route"
    advice = "Name the interface on which the packet arrives (--interface) and the address that it is sent to."


class NoInjection(Fault):
    code = "firewall.why.no-injection"
    advice = (
        "This kernel cannot be given a packet as if it came from the wire: it needs Linux 5.18 with CONFIG_BPF_SYSCALL "
        "and root. Ask the model alone (--model-only), or wait for a real packet (--wait SECONDS)."
    )


class NothingCame(Fault):
    code = "firewall.why.nothing-came"
    advice = "Wait longer, or check on the sender that the packet is really sent, and to which address."


class WhyBusy(Fault):
    code = "firewall.why.busy"
    advice = "Another `tidegate firewall why` runs; ask again when it has ended."


class TraceLost(Fault):
    code = "firewall.why.trace-lost"
    advice = "Messages of the kernel's rule tracing were lost: ask again, and end other traces (`nft monitor trace`)."


class WhyDisagree(Fault):
    code = "firewall.why.disagree"
    advice = (
        "The kernel does not do what the policy says: look at the table, chain and rule that the answer names; "
        "`tidegate firewall show` says whether the policy is in force as it was applied."
    )


# -- queue --


class QueueRulesRefused(Fault):
    code = "firewall.queue.refused"
    advice = (
        "Read iptables' own words: the kernel needs NFT_COMPAT, NETFILTER_XT_MATCH_MARK, NETFILTER_XT_TARGET_NFQUEUE. "
        "Until the rules are in place, services with field rules stay closed."
    )


class NoQueue(Fault):
    code = "firewall.queue.unsupported"
    advice = (
        "This kernel has neither nft's queue nor NFQUEUE through iptables-nft: install iptables, build the kernel with "
        "NFT_QUEUE, or put the application proxy before the service (`tidegate firewall fields proxy`)."
    )


# -- lockdown --


class LockdownNotPrepared(Rejected):
    code = "firewall.lockdown.not-prepared"
    advice = "Apply and confirm a policy first: its lockdown form is prepared with it."


class NotLockedDown(Misuse):
    code = "firewall.lockdown.off"
    advice = "There is nothing to lift; `tidegate firewall lockdown status` says what is on."


class BadLockdownTime(Misuse):
    code = "firewall.lockdown.time"
    advice = "Give 1 second to 30 days, or no time for a lockdown until it is lifted."


# -- mud --


class BadMud(Rejected):
    code = "firewall.mud.malformed"
    advice = "The file is no MUD file of RFC 8520; the message names the place. Ask the manufacturer for a correct one."


class MudUnsupported(Rejected):
    code = "firewall.mud.unsupported"
    advice = (
        "Give the peers that the message asks for (--controller, --my-controller, --local-networks, ...), or leave out "
        "what cannot be taken over with --partial: the list of it is printed."
    )


class MudPeers(Misuse):
    code = "firewall.mud.peers"
    advice = "Give --device an address (and, behind a gateway, its MAC), and peers as addresses, networks or DNS names."


class MudUnsigned(Rejected):
    code = "firewall.mud.unsigned"
    advice = (
        "Give --signature FILE.p7s and --trust CA.pem. Without a signature anybody on the way can have written the "
        "file; --insecure-unsigned takes it all the same."
    )


class MudSignatureBad(Rejected):
    code = "firewall.mud.signature"
    advice = "Do not use the file: it is not what a trusted signer signed. Fetch file and signature again."


class MudSignerRefused(Rejected):
    code = "firewall.mud.signer"
    advice = "The certificate that signed may not: RFC 8520 asks for digitalSignature and for the device's MUDsigner."


class MudExport(Misuse):
    code = "firewall.mud.export"
    advice = "Give an https URL, a manufacturer and a model, and a policy with a [firewall] section."


# -- checks --


class FieldsOverlap(Rejected):
    code = "firewall.check.fields-overlap"
    advice = "Give both rules the same fields, or make their peers, interfaces or ports disjoint."


class TooManyOverlaps(Rejected):
    code = "firewall.check.too-many-overlaps"
    advice = "Write one rule with a named list of peers instead of many rules on the same ports."


# -- agent --


class BansLost(Fault):
    code = "firewall.ban.lost"
    advice = "Some bans of before the boot are not in force: raise bans.max, or ban again what matters."


class Unsteady(Fault):
    code = "firewall.kernel.unsteady"
    advice = "Somebody changes our tables all the time: find who (`nft monitor`), end that, and try again."


# -- names --


class BadNamesConfig(Rejected):
    code = "firewall.names.config"
    advice = "Give one JSON line as docs/firewall-names.md has it; resolvers as `192.0.2.1` or `[2001:db8::1]:53`."


class NamesConfinement(Fault):
    code = "firewall.names.confinement"
    advice = "Start the keeper of DNS names as root (or with CAP_NET_ADMIN) from the process that it is to end with."


# -- scratch --


class ScratchFailed(Fault):
    code = "firewall.scratch.failed"
    advice = (
        "The text could not be loaded aside (no right to it, or a kernel without CONFIG_NET_NS); nothing was changed. "
        "Look at `tidegate firewall plan --nft` and at `tidegate firewall show` side by side."
    )


# -- learn --


class NoConntrack(Fault):
    code = "firewall.learn.no-conntrack"
    advice = "Use a kernel with CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_EVENTS, or learn from --eve FILE."


class BadWish(Misuse):
    code = "firewall.learn.wish"
    advice = "Give a time above 0 or --eve FILE, addresses to --device, prefix lengths of 8 to 32 and 16 to 128."


class NamesTrouble(Fault):
    code = "firewall.names.trouble"
    advice = "What the name stands for cannot be renewed: see to the resolvers; after an hour its rules allow nobody."
