// `node conformance.mjs URL KEY`: what a JavaScript program that was written for OpenAI does, done to a gateway. Prints one JSON object
// a row: its name, and what went wrong or null.

import assert from 'node:assert/strict'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import Anthropic from '@anthropic-ai/sdk'
import { embedMany, generateText, jsonSchema, streamText, tool } from 'ai'
import OpenAI, { toFile } from 'openai'

const [url, apiKey] = process.argv.slice(2)
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000 })
const provider = createOpenAICompatible({ name: 'tollway', baseURL: `${url}/v1`, apiKey })
const responding = createOpenAI({ baseURL: `${url}/v1`, apiKey })
const counting = createOpenAICompatible({ name: 'tollway', baseURL: `${url}/v1`, apiKey, includeUsage: true })
const model = 'm'
const claude = new Anthropic({ baseURL: url, apiKey, maxRetries: 0, timeout: 30_000 })
const messages = [{ role: 'user', content: 'Say something.' }]
const tools = [{ type: 'function', function: { name: 'toll', parameters: { type: 'object', properties: { road: {} } } } }]
const sound = 'UklGRmQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQQAAAAAAAAA'
const image = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='
const toll = tool({ description: 'a toll', inputSchema: jsonSchema({ type: 'object', properties: { road: { type: 'string' } } }) })

/** Return what `find` says of `thing` once it has ended. */
async function until(thing, hasEnded, find) {
  for (let tries = 0; tries < 300 && !hasEnded(thing); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100))
    thing = await find(thing.id)
  }
  return thing
}

const rows = {
  async plain() {
    const answer = await client.chat.completions.create({ model, messages })
    assert.equal(answer.choices[0].message.content, 'Hello')
    assert.match(answer._request_id, /^req_/)
  },
  async stream() {
    let text = ''
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      text += chunk.choices[0].delta.content ?? ''
      assert.equal(chunk.usage, undefined)
    }
    assert.equal(text, 'Hello')
  },
  async streamWithUsage() {
    let last
    const asked = { model, messages, stream: true, stream_options: { include_usage: true } }
    for await (const chunk of await client.chat.completions.create(asked)) last = chunk
    assert.equal(last.usage.completion_tokens, 2)
  },
  async tools() {
    const answer = await client.chat.completions.create({ model, messages, tools })
    assert.deepEqual(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments), { road: 'A1' })
    const final = await client.chat.completions.stream({ model, messages, tools }).finalMessage()
    assert.deepEqual(JSON.parse(final.tool_calls[0].function.arguments), { road: 'A1' })
  },
  async jsonSchema() {
    const schema = { type: 'json_schema', json_schema: { name: 'toll', schema: { type: 'object' } } }
    const answer = await client.chat.completions.create({ model, messages, response_format: schema })
    assert.equal(JSON.parse(answer.choices[0].message.content).cents, 250)
  },
  async vision() {
    const content = [{ type: 'text', text: 'What is this?' }, { type: 'image_url', image_url: { url: image } }]
    const answer = await client.chat.completions.create({ model, messages: [{ role: 'user', content }] })
    assert.ok(answer.choices[0].message.content)
  },
  async embeddings() {
    for (const more of [{}, { encoding_format: 'float' }, { encoding_format: 'base64' }]) {
      const answer = await client.embeddings.create({ model, input: 'a', ...more })
      if (more.encoding_format !== 'base64') assert.deepEqual([...answer.data[0].embedding], [0.5, -1, 0.25])
    }
  },
  async transcripts() {
    const file = await toFile(Buffer.from(sound, 'base64'), 'a.wav')
    assert.equal((await client.audio.transcriptions.create({ model, file })).text, 'Hello')
    const kinds = []
    for await (const event of await client.audio.transcriptions.create({ model, file, stream: true })) kinds.push(event.type)
    assert.deepEqual(kinds, ['transcript.text.delta', 'transcript.text.done'])
  },
  async speech() {
    const answer = await client.audio.speech.create({ model, input: 'Hello', voice: 'alloy' })
    assert.equal(await answer.text(), 'sound')
  },
  async files() {
    const content = 'line\n'.repeat(30_000)
    const file = await client.files.create({ file: await toFile(Buffer.from(content), 'a.jsonl'), purpose: 'batch' })
    const found = []
    for await (const each of client.files.list({ purpose: 'batch' })) found.push(each.id)
    assert.deepEqual(found, [file.id])
    assert.equal(await (await client.files.content(file.id)).text(), content)
    assert.ok((await client.files.delete(file.id)).deleted)
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError)
  },
  async batches() {
    const line = (number) => ({ custom_id: `c-${number}`, method: 'POST', url: '/v1/chat/completions', body: { model, messages } })
    const content = [0, 1].map((number) => JSON.stringify(line(number))).join('\n')
    const file = await client.files.create({ file: await toFile(Buffer.from(content), 'a.jsonl'), purpose: 'batch' })
    let batch = await client.batches.create({ input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h' })
    for (let tries = 0; tries < 300 && !['completed', 'failed'].includes(batch.status); tries++) {
      await new Promise((resolve) => setTimeout(resolve, 100))
      batch = await client.batches.retrieve(batch.id)
    }
    assert.equal(batch.status, 'completed')
    const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split('\n').map((each) => JSON.parse(each))
    assert.deepEqual(output.map((each) => each.custom_id).sort(), ['c-0', 'c-1'])
    const found = []
    for await (const each of client.batches.list()) found.push(each.id)
    assert.deepEqual(found, [batch.id])
    await assert.rejects(client.batches.cancel(batch.id), OpenAI.ConflictError)
    for (const id of [file.id, batch.output_file_id]) await client.files.delete(id)
  },
  async imageEdits() {
    const picture = await toFile(Buffer.from(image.split(',')[1], 'base64'), 'a.png')
    const answer = await client.images.edit({ model, prompt: 'x', image: [picture, picture] })
    assert.ok(answer.data[0].b64_json)
  },
  async images() {
    const answer = await client.images.generate({ model, prompt: 'x', n: 2, size: '256x256' })
    assert.ok(answer.data[1].b64_json)
  },
  async moderations() {
    const answer = await client.moderations.create({ model, input: 'x' })
    assert.equal(answer.results[0].flagged, false)
  },
  async batches() {
    const line = { custom_id: 'a', method: 'POST', url: '/v1/chat/completions', body: { model, messages } }
    const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), 'a.jsonl'), purpose: 'batch' })
    const asked = { input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h' }
    let batch = await client.batches.create(asked)
    batch = await until(batch, (each) => ['completed', 'failed'].includes(each.status), (id) => client.batches.retrieve(id))
    assert.equal(batch.status, 'completed')
    const output = JSON.parse(await (await client.files.content(batch.output_file_id)).text())
    assert.equal(output.response.body.choices[0].message.content, 'Hello')
  },
  async responsesStored() {
    const first = await client.responses.create({ model, input: 'Say something.', store: true })
    const second = await client.responses.create({ model, input: 'Again.', previous_response_id: first.id, store: true })
    const roles = []
    for await (const item of client.responses.inputItems.list(second.id, { order: 'asc' })) roles.push(item.role)
    assert.deepEqual(roles, ['user', 'assistant', 'user'])
    await assert.rejects(client.responses.cancel(first.id), OpenAI.BadRequestError)
    await client.responses.delete(first.id)
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError)
    assert.equal((await client.responses.inputTokens.count({ model, input: 'Say something.' })).input_tokens, 7)
  },
  async responsesBackground() {
    let answer = await client.responses.create({ model, input: 'Say something.', background: true })
    assert.equal(answer.status, 'queued')
    answer = await until(answer, (each) => !['queued', 'in_progress'].includes(each.status), (id) => client.responses.retrieve(id))
    assert.equal(answer.output_text, 'Hello')
  },
  async responsesCompact() {
    const compacted = await client.responses.compact({ model, input: [{ role: 'user', content: 'Say something.' }] })
    assert.equal(compacted.output[0].type, 'compaction')
    const answer = await client.responses.create({ model, input: compacted.output })
    assert.equal(answer.output_text, 'Hello')
  },
  async claudePlain() {
    const message = await claude.messages.create({ model, max_tokens: 9, messages })
    assert.equal(message.content[0].text, 'Hello')
    assert.match(message._request_id, /^req_/)
    assert.equal((await claude.messages.countTokens({ model, messages })).input_tokens, 7)
  },
  async claudeStream() {
    const stream = claude.messages.stream({ model, max_tokens: 9, messages })
    let text = ''
    stream.on('text', (piece) => { text += piece })
    assert.equal((await stream.finalMessage()).usage.output_tokens, 2)
    assert.equal(text, 'Hello')
  },
  async claudeTools() {
    const asked = { model, max_tokens: 9, messages, tools: [{ name: 'toll', input_schema: { type: 'object' } }] }
    for (const message of [await claude.messages.create(asked), await claude.messages.stream(asked).finalMessage()]) {
      assert.deepEqual(message.content[0].input, { road: 'A1' })
      assert.equal(message.stop_reason, 'tool_use')
    }
  },
  async claudeErrors() {
    const absent = claude.messages.create({ model: 'absent', max_tokens: 9, messages })
    await assert.rejects(absent, (error) => error instanceof Anthropic.NotFoundError && !!error.requestID)
  },
  async claudeBatches() {
    const params = { model, max_tokens: 9, messages }
    let batch = await claude.messages.batches.create({ requests: [{ custom_id: 'a', params }] })
    batch = await until(batch, (each) => each.processing_status === 'ended', (id) => claude.messages.batches.retrieve(id))
    const texts = []
    for await (const each of await claude.messages.batches.results(batch.id)) texts.push(each.result.message.content[0].text)
    assert.deepEqual(texts, ['Hello'])
    await claude.messages.batches.delete(batch.id)
  },
  async models() {
    const found = []
    for await (const each of client.models.list()) found.push(each.id)
    assert.ok(found.includes(model))
    const one = await client.models.retrieve('org/name')
    assert.equal(one.id, 'org/name')
    assert.ok(one.prices[0].unit_prices.input && one.endpoints.includes('chat/completions'))
  },
  async errors() {
    const absent = client.chat.completions.create({ model: 'absent', messages })
    await assert.rejects(absent, (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found' && !!error.requestID)
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-x', maxRetries: 0 })
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError)
  },
  async retry() {
    const asked = { model, messages: [{ role: 'user', content: 'busy' }] }
    const answer = await client.chat.completions.create(asked, { maxRetries: 2 })
    assert.equal(answer.choices[0].message.content, 'Hello')
  },
  async cancel() {
    const asked = { model, messages: [{ role: 'user', content: 'slow' }], stream: true }
    for await (const chunk of await client.chat.completions.create(asked)) if (chunk.choices[0].delta.content === 'b') break
  },
  async responses() {
    const answer = await client.responses.create({ model, input: 'Say something.' })
    assert.equal(answer.output_text, 'Hello')
    assert.equal(answer.usage.total_tokens, 7)
  },
  async responsesStream() {
    const stream = client.responses.stream({ model, input: [{ role: 'user', content: 'Say something.' }] })
    let text = ''
    for await (const event of stream) if (event.type === 'response.output_text.delta') text += event.delta
    assert.equal(text, 'Hello')
    assert.equal((await stream.finalResponse()).output_text, 'Hello')
  },
  async vercelResponses() {
    const { text, usage } = await generateText({ model: responding(model), prompt: 'Say something.' })
    assert.equal(text, 'Hello')
    assert.equal(usage.outputTokens, 2)
  },
  async vercelResponsesStream() {
    const run = streamText({ model: responding(model), prompt: 'Say something.', tools: { toll } })
    assert.deepEqual((await run.toolCalls)[0].input, { road: 'A1' })
  },
  async vercelText() {
    const { text, usage } = await generateText({ model: provider(model), prompt: 'Say something.' })
    assert.equal(text, 'Hello')
    assert.equal(usage.outputTokens, 2)
  },
  async vercelStream() {
    const run = streamText({ model: counting(model), prompt: 'Say something.' })
    let text = ''
    for await (const piece of run.textStream) text += piece
    assert.equal(text, 'Hello')
    assert.equal((await run.usage).outputTokens, 2)
    assert.equal(await run.finishReason, 'stop')
  },
  async vercelTools() {
    const run = streamText({ model: provider(model), prompt: 'Say something.', tools: { toll } })
    const calls = await run.toolCalls
    assert.deepEqual(calls[0].input, { road: 'A1' })
  },
  async vercelEmbeddings() {
    const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(model), values: ['a', 'b'] })
    assert.deepEqual(embeddings, [[0.5, -1, 0.25], [0.5, -1, 0.25]])
  },
}

for (const [row, run] of Object.entries(rows)) {
  let wrong = null
  try {
    await run()
  } catch (error) {
    wrong = String(error?.stack ?? error)
  }
  console.log(JSON.stringify({ row, wrong }))
}
