//! The fields that mlxbatch acts on, with what they take and do: the one list of man mlxbatch-input(5).
//!
//! Owns their description. Reading and checking them is `params`', `options`', `prompts`' and `messages`'
//! business.

/// A field of an input line.
#[derive(Debug, Clone, Copy)]
pub struct ServedField {
    pub name: &'static str,
    /// Its type and range.
    pub takes: &'static str,
    /// What it does.
    pub summary: &'static str,
}

/// Fields that belong together, under a heading.
#[derive(Debug, Clone, Copy)]
pub struct ServedGroup {
    pub heading: &'static str,
    pub fields: &'static [ServedField],
}

const fn served(name: &'static str, takes: &'static str, summary: &'static str) -> ServedField {
    ServedField { name, takes, summary }
}

/// All of them.
pub const SERVED: &[ServedGroup] = &[
    ServedGroup {
        heading: "The line",
        fields: &[
            served(
                "custom_id",
                "text or number",
                "names the line; unique in all inputs, else the later line is an error",
            ),
            served(
                "id",
                "text or number",
                "the same, where custom_id is absent; without both the line is called line-<number>, behind the first input file-<input>-line-<number>",
            ),
            served("question_id", "text or number", "the same beside turns, where both are absent"),
            served("method", "\"POST\"", "of the Batch API's form; may be left out"),
            served(
                "url",
                "\"/v1/chat/completions\" or \"/v1/completions\"",
                "says which form the body has; without it the body's messages or prompt do",
            ),
            served("body", "object", "holds the fields below in the Batch API's form"),
            served("metadata", "anything", "is repeated in the output line"),
            served(
                "model",
                "text",
                "warned of where it is not the model of the run, which answers all the same; model:adapter names its adapter too",
            ),
            served("adapter", "text", "the name of the run's --adapter, its folder's; another is an error"),
        ],
    },
    ServedGroup {
        heading: "The prompt",
        fields: &[
            served(
                "messages",
                "list of {role, content}",
                "a conversation, rendered by the model's chat template; an assistant's message whose content is null or absent is a turn to be generated",
            ),
            served(
                "turns",
                "list of texts",
                "MT-Bench's form of a conversation: what the user says, each text followed by an answer",
            ),
            served(
                "conversations",
                "list of {from, value} or {role, content}",
                "ShareGPT's form of a conversation, from human, gpt, system or tool; a last message of the model is taken for a reference answer and left out, with a warning, unless the request says continue_final_message",
            ),
            served("system", "text", "the system message in front of turns or conversations"),
            served(
                "prompt",
                "text, list of texts, list of token ids, or list of such lists",
                "raw text or tokens to be continued; each member of a list is one choice (n choices)",
            ),
            served(
                "add_special_tokens",
                "true or false",
                "whether the tokenizer adds its own, such as BOS; by default to raw text and not to conversations",
            ),
            served(
                "tools",
                "list of objects",
                "functions, shown to the template; calls of them are read from the answer into tool_calls",
            ),
            served(
                "tool_choice",
                "\"auto\", \"none\", \"required\", {\"type\": \"function\", ...} or {\"type\": \"allowed_tools\", ...}",
                "none hides the tools from the model; required and a named function hold the answer to calls that meet the tools' schemas",
            ),
            served(
                "parallel_tool_calls",
                "true or false",
                "false holds a required call to be one alone, and is handed to the template, where it may be read",
            ),
            served(
                "parse_tool_calls",
                "true or false",
                "false leaves calls in the text as the model writes them",
            ),
            served("chat_template", "text", "a Jinja template in place of the model's own"),
            served("chat_template_kwargs", "object", "more variables for the template"),
            served("reasoning_effort", "text", "the template's variable of that name"),
            served("enable_thinking", "true or false", "the template's variable of that name"),
            served(
                "add_generation_prompt",
                "true or false",
                "false leaves out the header of the assistant's message, which begins the answer by default",
            ),
            served(
                "continue_final_message",
                "true or false",
                "true has the answer go on with the text of the last message",
            ),
        ],
    },
    ServedGroup {
        heading: "Length and end",
        fields: &[
            served(
                "n",
                "1 to 128",
                "answers to each prompt; choice k is what the same request gives with a seed that is k more",
            ),
            served("max_tokens", "0 or more", "longest answer; 0 only with echo or prompt_logprobs"),
            served("max_completion_tokens", "0 or more", "the same"),
            served(
                "min_tokens",
                "0 to max_tokens",
                "no end token is chosen, and no stop looked for, before the answer has so many tokens",
            ),
            served("ignore_eos", "true or false", "true has the answer go on where the model would end it"),
            served(
                "stop",
                "text or list of texts",
                "ends the answer before this text; stop_reason says which",
            ),
            served(
                "stop_token_ids",
                "list of token ids",
                "tokens that end the answer beside the model's own; stop_reason says which",
            ),
            served(
                "include_stop_str_in_output",
                "true or false",
                "true leaves the stop in the answer's text",
            ),
            served("skip_special_tokens", "true or false", "false shows special tokens in the answer's text"),
        ],
    },
    ServedGroup {
        heading: "Choosing tokens",
        fields: &[
            served("temperature", "0 to 2", "0 always takes the most probable token"),
            served(
                "top_p",
                "0 to 1",
                "draws from the most probable tokens up to this total probability; 0 is greedy",
            ),
            served("top_k", "-1 or more", "draws from so many most probable tokens; 0 and -1 from all"),
            served(
                "min_p",
                "0 to 1",
                "drops tokens below this share of the most probable token's probability",
            ),
            served(
                "seed",
                "whole number",
                "of the random numbers: the same seed, prompt and parameters give the same answer",
            ),
            served(
                "repetition_penalty",
                "0.01 to 100",
                "divides positive and multiplies negative logits of tokens that prompt or answer have; 1 is none",
            ),
            served(
                "repetition_context_size",
                "1 or more",
                "how many of the last tokens the repetition penalty looks at; all where it is absent",
            ),
            served(
                "presence_penalty",
                "-2 to 2",
                "taken off once from the logits of tokens that the answer has",
            ),
            served("frequency_penalty", "-2 to 2", "taken off for each time that the answer has the token"),
            served("logit_bias", "object of token id: -100 to 100", "added to the logits of these tokens"),
            served(
                "bad_words",
                "list of texts",
                "texts whose tokens the answer never completes, with and without a space in front",
            ),
        ],
    },
    ServedGroup {
        heading: "What the answer has to be",
        fields: &[
            served(
                "response_format",
                "{\"type\": \"text\", \"json_object\" or \"json_schema\", \"json_schema\": {\"schema\": ...}}",
                "a JSON object, or JSON that meets the schema, whether it says strict or not",
            ),
            served(
                "structured_outputs",
                "object with one of json, regex, choice, grammar, json_object",
                "vLLM's form of all of these; with whitespace_pattern or disable_any_whitespace for JSON",
            ),
            served("guided_json", "JSON schema, or its text", "JSON that meets the schema"),
            served(
                "guided_regex",
                "text",
                "text that the regular expression matches as a whole; \\d, \\w and \\s are of ASCII",
            ),
            served("guided_choice", "list of texts", "one of these texts"),
            served(
                "guided_grammar",
                "text",
                "a sentence of the grammar, in llguidance's Lark syntax or in GBNF",
            ),
            served(
                "guided_whitespace_pattern",
                "text",
                "what white space between parts of JSON has to match; by default a space, or one or two line ends and up to 20 spaces",
            ),
            served("json_schema", "JSON schema, or its text", "llama.cpp's and SGLang's name of guided_json"),
            served("regex", "text", "SGLang's name of guided_regex"),
            served("grammar", "text", "llama.cpp's name of guided_grammar"),
            served("ebnf", "text", "SGLang's name of guided_grammar"),
        ],
    },
    ServedGroup {
        heading: "Thinking",
        fields: &[
            served(
                "thinking_budget",
                "-1 or more",
                "closes the thinking when it has so many tokens, so that the answer follows; -1 is no limit",
            ),
            served("thinking_token_budget", "-1 or more", "vLLM's name of it"),
            served("thinking_budget_tokens", "-1 or more", "llama.cpp's and Anthropic's name of it"),
            served("reasoning_budget", "-1 or more", "llama.cpp's other name of it"),
            served("max_reasoning_tokens", "-1 or more", "the same"),
            served(
                "reasoning_format",
                "\"auto\", \"deepseek\", \"parsed\", \"none\", \"raw\" or \"hidden\"",
                "the first three tell thinking as reasoning_content, which is the default; none and raw leave it in the text, hidden leaves it out",
            ),
            served("separate_reasoning", "true or false", "false leaves thinking in the text"),
            served("include_reasoning", "true or false", "false leaves thinking out"),
        ],
    },
    ServedGroup {
        heading: "What is told",
        fields: &[
            served(
                "logprobs",
                "chat: true or false; completion: 0 to 20",
                "log-probabilities of the answer's tokens, in a completion with so many of the most probable tokens",
            ),
            served(
                "top_logprobs",
                "0 to 20",
                "how many of the most probable tokens a conversation's logprobs tell",
            ),
            served(
                "prompt_logprobs",
                "0 to 20",
                "log-probabilities of the prompt's tokens with so many of the most probable ones, in vLLM's shape",
            ),
            served(
                "logprob_start_len",
                "0 or more",
                "the first token of the prompt that is told of, by prompt_logprobs or echo; those before may come from the cache",
            ),
            served(
                "echo",
                "true or false",
                "true has a completion's text begin with its prompt, and its logprobs with those of the prompt's tokens",
            ),
        ],
    },
];
