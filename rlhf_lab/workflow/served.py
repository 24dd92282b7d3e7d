"""Draws of a policy through a completions server, which must serve that very policy: its name there is its folder.

    vllm serve /../iteration-1/policy-3f2a9c0d41be          transformers serve

The policy changes every iteration, and its folder's name, the hash of all that made it, with it. So a server that is
still at an older iterate refuses the name, instead of drawing from a stale policy. `transformers serve` without a model
loads whatever folder a request names; vLLM serves one, and is started again with the folder that the error tells.
Only a server that answers to every name would not be caught.
"""

from collections.abc import Sequence

from rlhf_lab.engine.loading import load_generation_config
from rlhf_lab.engine.options import ending_ids
from rlhf_lab.engine.serving.exchange import ServerError
from rlhf_lab.engine.serving.sampling import Responses, plain_sampling, server_sample
from rlhf_lab.workflow.artefacts import Artefact
from rlhf_lab.workflow.settings import WorkflowSettings


def served_draws(
    settings: WorkflowSettings,
    policy: Artefact,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    done: Responses,
    *,
    temperatures: Sequence[float],
    seed: int,
    progress: str | None,
) -> list[list[list[int]]]:
    """One response at each of `temperatures` to each prompt (ids), as `engine.generate.sample` gives them.

    done: what an earlier call had received; it receives what arrives now. Raises ServerError that says how many
    responses are kept and what to start, ValueError for a prompt that text cannot carry.
    """
    name = str(policy.path.resolve())
    ends = ending_ids(tokenizer.eos_token_id, load_generation_config(policy.path))
    try:
        return server_sample(
            settings.server_url,
            name,
            prompts,
            tokenizer,
            n=len(temperatures),
            temperatures=temperatures,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
            concurrency=settings.concurrency,
            timeout=settings.server_timeout,
            retries=settings.server_retries,
            api_key_variable=settings.api_key_variable,
            send_ids=settings.sampler == "vllm",
            extra_body=plain_sampling(settings.sampler, ends),
            done=done,
            progress=progress,
        )
    except ServerError as error:
        total = len(prompts) * len(temperatures)
        raise ServerError(
            f"{error}. The policy must be served under the name {name}: by `vllm serve` with that folder, or by "
            f"`transformers serve` without a model, which loads it when asked. {len(done)} of {total} responses of "
            "this policy have arrived and are kept",
            error.status,
        ) from error
