"""What the agent refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class AgentAbsent(Fault):
    code = "agent.absent"
    advice = "Start the agent, or name its run folder with --run."


class RequestMalformed(Rejected):
    code = "agent.request.malformed"
    advice = "Send one JSON object a line with an `op` that docs/agent.md names."


class RequestDenied(Rejected):
    code = "agent.request.denied"
    advice = "Only root may ask the agent for this; run the command as root."


class TooManyConnections(Fault):
    code = "agent.connections"
    advice = "Close connections that are not used, then try again."


class NothingPending(Misuse):
    code = "agent.policy.nothing-pending"
    advice = "No policy waits for a confirmation: it was confirmed or rolled back before."


class AgentBusy(Fault):
    code = "agent.busy"
    advice = "The agent is doing this already; ask for its status."


class UnexpectedFailure(Fault):
    code = "agent.unexpected"
    advice = "This is a defect in Tidegate: report it with the event's text."


class UnknownRefusal(Rejected):
    code = "agent.boot.unknown-refusal"
    advice = "The boot stages are newer than the agent; look the code up in their version."


class WorkerEnded(Fault):
    code = "agent.worker.ended"
    advice = "The agent starts the process again; if it keeps ending, run it by hand (docs/agent.md) and read why."


class LineSkipped(Fault):
    code = "agent.worker.line"
    advice = "A process of the agent wrote a line that is too long; it was passed over. `status` counts such lines."


class FloorMalformed(Rejected):
    code = "agent.policy.floor-malformed"
    advice = "The note of the newest policy is damaged: remove it on the device itself and apply the current policy."
